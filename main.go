// Command ftfuse captures what programs append to files below a mount point and
// carries it, durably and exactly once, to files on an aggregator.
//
// This package is the command line and nothing else: it reads the configuration,
// sets up the log, turns signals into a cancelled context, calls the role, and turns
// what comes back into an exit code.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"ftfuse/bench"
	"ftfuse/config"
	"ftfuse/internal/status"
	"ftfuse/mount"
)

// Exit codes; people script against them.
const (
	exitOK      = 0
	exitRuntime = 1
	exitUsage   = 2
	exitConfig  = 78 // EX_CONFIG of sysexits.h
)

func main() {
	status.Version = version
	mount.MaybeHelper()
	if code, ok := bench.MaybeHelper(); ok {
		os.Exit(code)
	}
	if code, ours := runHelper(os.Args, os.Stdout, os.Stderr); ours {
		os.Exit(code)
	}
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// run is the whole program; it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	err := newApp(stdout, stderr).Run(args)
	code := exitCode(err)
	var quiet *quietError
	if err != nil && !errors.As(err, &quiet) {
		report(stderr, code, err)
	}
	return code
}

// report prints err. Configuration problems stand alone on their lines, so that
// editors find FILE:LINE.
func report(w io.Writer, code int, err error) {
	switch code {
	case exitConfig:
		fmt.Fprintln(w, err)
	case exitUsage:
		fmt.Fprintf(w, "%v\n`ftfuse help` shows the commands, `ftfuse COMMAND --help` one of them\n", err)
	default:
		fmt.Fprintf(w, "ftfuse: %v\n", err)
	}
}

// exitCode is the only place where errors become exit codes.
func exitCode(err error) int {
	var (
		usage  *usageError
		broken *config.Error
		passed *codeError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &broken):
		return exitConfig
	case errors.As(err, &passed):
		return passed.code
	}
	return exitRuntime
}

// usageError is a command line that cannot be meant.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error {
	return &usageError{msg: fmt.Sprintf(format, args...)}
}

// quietError has been shown already; only its exit code is left to give.
type quietError struct{ err error }

func (e *quietError) Error() string { return e.err.Error() }
func (e *quietError) Unwrap() error { return e.err }

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:            "ftfuse",
		Usage:           "capture what programs write to files, and carry it to files elsewhere: nothing lost, nothing doubled",
		UsageText:       "ftfuse COMMAND [OPTIONS] [ARGUMENTS]",
		HideVersion:     true,
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {}, // run decides
		OnUsageError:    onUsageError,
		Action:          unknownCommand,
		Commands:        commands(),
		HideHelpCommand: false,
	}
	prepare(app.Commands)
	return app
}

func commands() []*cli.Command {
	return []*cli.Command{
		mountCommand(), relayCommand(), receiveCommand(),
		demoCommand(), benchCommand(),
		checkCommand(), statusCommand(), queueCommand(), certCommand(), sendCommand(), convertCommand(), versionCommand(),
	}
}

// prepare gives every command the same treatment of misuse.
func prepare(all []*cli.Command) {
	for _, c := range all {
		c.OnUsageError = onUsageError
		c.HideHelpCommand = true
		if len(c.Subcommands) > 0 {
			if c.Action == nil {
				c.Action = unknownCommand
			}
			prepare(c.Subcommands)
			continue
		}
		if c.ArgsUsage == "" {
			c.Action = withoutArguments(c.Action)
		}
	}
}

func onUsageError(c *cli.Context, err error, _ bool) error {
	return usagef("%s: %v", commandName(c), err)
}

func unknownCommand(c *cli.Context) error {
	if c.Args().Len() == 0 {
		return usagef("%s: a command must follow", commandName(c))
	}
	return usagef("%s: unknown command %q", commandName(c), c.Args().First())
}

func withoutArguments(action cli.ActionFunc) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.Args().Len() > 0 {
			return usagef("%s: unexpected argument %q", commandName(c), c.Args().First())
		}
		return action(c)
	}
}

// commandName is "ftfuse queue ls" for that command.
func commandName(c *cli.Context) string {
	name := "ftfuse"
	if c.Command != nil && c.Command.HelpName != "" {
		name = c.Command.HelpName
	}
	return name
}
