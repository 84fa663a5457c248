package main

import (
	"ftfuse/config"
	"ftfuse/mount"
)

// roles are the entry points.
var roles = map[config.Role]runFunc{
	config.RoleMount: mount.Run,
}
