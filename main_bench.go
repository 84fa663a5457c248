package main

import "github.com/urfave/cli/v2"

func benchCommand() *cli.Command {
	return &cli.Command{Name: "bench", Usage: "measure mount to receive on this machine", Action: arrivesLater("still being built")}
}

func demoCommand() *cli.Command {
	return &cli.Command{Name: "demo", Usage: "show the whole way on this machine", Action: arrivesLater("still being built")}
}
