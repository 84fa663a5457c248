package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"ftfuse/internal/certs"
)

func certCommand() *cli.Command {
	dir := &cli.StringFlag{Name: "dir", Value: ".", Usage: "write the files to `DIR`, which is made if need be, and look for the CA there"}
	return &cli.Command{
		Name:  "cert",
		Usage: "make the certificates of a small site",
		Subcommands: []*cli.Command{
			{
				Name:  "ca",
				Usage: "make the CA of the site: ca.pem for every host, ca-key.pem to keep",
				Flags: []cli.Flag{
					dir,
					&cli.StringFlag{Name: "name", Value: "ftfuse", Usage: "call it `NAME`"},
					&cli.IntFlag{Name: "days", Value: int(certs.DefaultCALife / day), Usage: "good for `DAYS`"},
				},
				Action: certCA,
			},
			{
				Name:      "host",
				Usage:     "make a certificate and a key for each host, by that CA; after a comma, its other names and addresses",
				ArgsUsage: "NAME[,NAME…] …",
				Flags: []cli.Flag{
					dir,
					&cli.IntFlag{Name: "days", Value: int(certs.DefaultHostLife / day), Usage: "good for `DAYS`, but no longer than the CA"},
					&cli.BoolFlag{Name: "replace", Usage: "replace the certificate and the key that are there; running roles notice"},
				},
				Action: certHost,
			},
		},
	}
}

const day = 24 * time.Hour

// life is --days.
func life(c *cli.Context) (time.Duration, error) {
	const most = 100 * 365
	n := c.Int("days")
	if n < 1 || n > most {
		return 0, usagef("%s: --days %d; write a number from 1 to %d", commandName(c), n, most)
	}
	return time.Duration(n) * day, nil
}

func certCA(c *cli.Context) error {
	good, err := life(c)
	if err != nil {
		return err
	}
	m, err := certs.MakeCA(c.String("dir"), c.String("name"), good)
	if errors.Is(err, certs.ErrExists) {
		return fmt.Errorf("%w; a new CA makes all certificates of the old one worthless: move it away first", err)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s: the CA's certificate, good until %s; every host gets a copy\n"+
		"%s: its key; keep it here, who has it can be any host\n"+
		"next: ftfuse cert host --dir %s NAME…\n", m.Cert, m.NotAfter.Format(time.DateOnly), m.Key, c.String("dir"))
	return err
}

func certHost(c *cli.Context) error {
	good, err := life(c)
	if err != nil {
		return err
	}
	if c.Args().Len() == 0 {
		return usagef("%s: the names of hosts must follow; options stand before them", commandName(c))
	}
	for _, arg := range c.Args().Slice() {
		names := strings.Split(arg, ",")
		m, err := certs.MakeHost(c.String("dir"), c.String("dir"), names, good, c.Bool("replace"))
		switch {
		case errors.Is(err, certs.ErrName):
			return usagef("%s: %v", commandName(c), err)
		case errors.Is(err, certs.ErrExists):
			return fmt.Errorf("%w; --replace makes a new one", err)
		case err != nil:
			return err
		}
		if err := showHost(c.App.Writer, names, m); err != nil {
			return err
		}
	}
	return nil
}

func showHost(w io.Writer, names []string, m certs.Made) error {
	cert, key := filepath.Base(m.Cert), filepath.Base(m.Key)
	_, err := fmt.Fprintf(w, `%s: certificate for %s, good until %s
%s: its key
  copy both and ca.pem to /etc/ftfuse of %s, and write into its ftfuse.toml, with host = %q:
    [tls]
    cert = "/etc/ftfuse/%s"
    key  = "/etc/ftfuse/%s"
    ca   = "/etc/ftfuse/ca.pem"
`, m.Cert, strings.Join(names, ", "), m.NotAfter.Format(time.DateOnly), m.Key, names[0], names[0], cert, key)
	return err
}
