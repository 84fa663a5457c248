package main

import "github.com/urfave/cli/v2"

func queueCommand() *cli.Command {
	flags := []cli.Flag{configFlag(), roleFlag()}
	return &cli.Command{
		Name:  "queue",
		Usage: "look into the durable queues of stopped roles, and mend them",
		Subcommands: []*cli.Command{
			{Name: "cat", Usage: "print what is queued (arrives with a later version)", Flags: flags, Action: arrivesLater("`ftfuse queue ls` tells how much is queued")},
			{Name: "export", Usage: "write what is queued to a file (arrives with a later version)", Flags: flags, Action: arrivesLater("copy the folder <state_dir>/<role>/queue of the stopped role")},
			{Name: "import", Usage: "queue what export wrote (arrives with a later version)", Flags: flags, Action: arrivesLater("copy the folder <state_dir>/<role>/queue of the stopped role")},
		},
	}
}
