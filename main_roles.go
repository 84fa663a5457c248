package main

import (
	"ftfuse/config"
	"ftfuse/mount"
	"ftfuse/receive"
)

// roles are the entry points.
var roles = map[config.Role]runFunc{
	config.RoleMount:   mount.Run,
	config.RoleReceive: receive.Run,
}
