package main

import (
	"github.com/urfave/cli/v2"

	"ftfuse/config"
	"ftfuse/receive"
	"ftfuse/relay"
)

// roles are the entry points of those that need no more than their configuration.
var roles = map[config.Role]runFunc{
	config.RoleRelay:   relay.Run,
	config.RoleReceive: receive.Run,
}

func receiveCommand() *cli.Command {
	return roleCommand(config.RoleReceive, "receive batches and write them to files")
}

func roleCommand(role config.Role, usage string) *cli.Command {
	return &cli.Command{
		Name:  string(role),
		Usage: usage,
		Flags: []cli.Flag{configFlag()},
		Action: func(c *cli.Context) error {
			file := configFile(c)
			return serve(role, roles[role], func() (*config.Config, error) { return config.Load(file) }, nil, nil, c.App.ErrWriter)
		},
	}
}

func relayCommand() *cli.Command {
	return roleCommand(config.RoleRelay, "take batches and pass them on")
}
