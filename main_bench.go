package main

import (
	"context"
	"errors"
	"flag"
	"io"

	"github.com/urfave/cli/v2"

	"ftfuse/bench"
	"ftfuse/bench/demo"
)

// ownFlags runs a command that reads its own arguments, as bench and demo do.
func ownFlags(run func(ctx context.Context, args []string, stdout, stderr io.Writer) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		err := run(c.Context, c.Args().Slice(), c.App.Writer, c.App.ErrWriter)
		switch {
		case errors.Is(err, flag.ErrHelp):
			return nil
		case errors.Is(err, bench.ErrUsage):
			return usagef("%s: %v", commandName(c), err)
		}
		return err
	}
}

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:            "bench",
		Usage:           "measure mount to receive on this machine",
		ArgsUsage:       "[FLAGS]",
		SkipFlagParsing: true,
		Action:          ownFlags(bench.Main),
	}
}

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:            "demo",
		Usage:           "show the whole way on this machine, in a temporary folder",
		ArgsUsage:       "[FLAGS]",
		SkipFlagParsing: true,
		Action:          ownFlags(demo.Main),
	}
}
