package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"ftfuse/internal/k2hft"
)

func convertCommand() *cli.Command {
	return &cli.Command{
		Name:      "convert",
		Usage:     "write a configuration of K2HFTFUSE or K2HFTFUSESVR (INI, YAML, JSON) as one of ftfuse",
		ArgsUsage: "FILE|-",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "json", Usage: "convert this JSON `STRING` instead of a file"},
			&cli.StringFlag{Name: "point", Usage: "the mount point is `DIR`; default: what --fstab has for FILE"},
			&cli.StringFlag{Name: "fstab", TakesFile: true, Usage: "look in `FILE` for the mount point and its options", Value: "/etc/fstab"},
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, TakesFile: true, Usage: "write to `FILE`, which must not be there yet; default: standard output"},
		},
		Action: convert,
	}
}

// maxConvert is the largest configuration that is read, in bytes.
const maxConvert = 4 << 20

// convert prints the configuration, and on stderr how much of it wants to be looked at.
func convert(c *cli.Context) error {
	name, text, err := toConvert(c)
	if err != nil {
		return err
	}
	o := k2hft.Options{Mount: k2hft.Mountpoint{Point: c.String("point")}, Open: readConfig}
	if fstab, err := os.ReadFile(c.String("fstab")); err == nil {
		if abs, err := filepath.Abs(name); err == nil {
			if m, ok := k2hft.FindMount(c.String("fstab"), fstab, abs); ok {
				if o.Mount.Point != "" {
					m.Point = o.Mount.Point
				}
				o.Mount = m
			}
		}
	} else if c.IsSet("fstab") {
		return err
	}
	r, err := k2hft.Convert(name, text, o)
	if err != nil {
		return err
	}
	if err := writeConverted(c, r.TOML); err != nil {
		return err
	}
	if r.Notes > 0 {
		fmt.Fprintf(c.App.ErrWriter, "comments that begin with NOTE: %d; read them, then run `ftfuse check`\n", r.Notes)
	}
	return nil
}

// toConvert returns the text that the command line names, and a name for it.
func toConvert(c *cli.Context) (name string, text []byte, err error) {
	arg := c.Args().First()
	switch {
	case c.IsSet("json") && c.Args().Len() > 0, c.Args().Len() > 1:
		return "", nil, usagef("ftfuse convert: one FILE, or --json STRING")
	case c.IsSet("json"):
		return "JSON string", []byte(c.String("json")), nil
	case strings.HasPrefix(strings.TrimSpace(arg), "{"):
		return "JSON string", []byte(arg), nil
	case arg == "":
		return "", nil, usagef("ftfuse convert: FILE is missing: the configuration of K2HFTFUSE, or - for standard input")
	case arg == "-":
		name = "standard input"
		text, err = io.ReadAll(io.LimitReader(c.App.Reader, maxConvert+1))
	default:
		name = arg
		text, err = readConfig(arg)
	}
	if err == nil && len(text) > maxConvert {
		err = tooLarge(name)
	}
	return name, text, err
}

// readConfig reads a file that a configuration can be in: also one without end is given up.
func readConfig(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConvert+1))
	if err == nil && len(text) > maxConvert {
		err = tooLarge(name)
	}
	return text, err
}

func tooLarge(name string) error { return fmt.Errorf("%s is larger than %d bytes", name, maxConvert) }

func writeConverted(c *cli.Context, toml []byte) error {
	out := c.String("out")
	if out == "" {
		_, err := c.App.Writer.Write(toml)
		return err
	}
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(toml)
	return errors.Join(err, f.Close())
}
