package main

import (
	"github.com/urfave/cli/v2"

	"ftfuse/config"
)

func receiveCommand() *cli.Command {
	return &cli.Command{
		Name:  "receive",
		Usage: "receive batches and write them to files",
		Flags: []cli.Flag{configFlag()},
		Action: func(c *cli.Context) error {
			file := configFile(c)
			return serve(config.RoleReceive, roles[config.RoleReceive], func() (*config.Config, error) {
				return config.Load(file)
			}, nil, c.App.ErrWriter)
		},
	}
}

func relayCommand() *cli.Command {
	return &cli.Command{
		Name:   "relay",
		Usage:  "pass batches on (arrives with a later version)",
		Flags:  []cli.Flag{configFlag()},
		Action: arrivesLater("the relay role arrives with a later version"),
	}
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:   "status",
		Usage:  "show what the roles are doing (arrives with a later version)",
		Flags:  []cli.Flag{configFlag(), roleFlag(), &cli.BoolFlag{Name: "json", Usage: "as JSON"}},
		Action: arrivesLater("until then the log and `ftfuse queue ls` on a stopped role tell"),
	}
}

func sendCommand() *cli.Command {
	return &cli.Command{
		Name:      "send",
		Usage:     "hand a local file to the queue (arrives with a later version)",
		ArgsUsage: "FILE...",
		Flags:     []cli.Flag{configFlag(), &cli.StringFlag{Name: "as", Usage: "under this `PATH`"}},
		Action:    arrivesLater("until then copy the file into the mount"),
	}
}
