package main

import "ftfuse/config"

// roles are the entry points.
var roles = map[config.Role]runFunc{}
