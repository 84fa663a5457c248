package main

import (
	"ftfuse/config"
	"ftfuse/receive"
)

// roles are the entry points of those that need no more than their configuration.
var roles = map[config.Role]runFunc{
	config.RoleReceive: receive.Run,
}
