package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"ftfuse/config"
	"ftfuse/internal/certs"
	"ftfuse/mount"
)

func configFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "config", Aliases: []string{"c"}, TakesFile: true,
		Usage:       "read the configuration from `FILE`",
		EnvVars:     []string{config.FileEnv},
		Value:       config.DefaultFile,
		DefaultText: config.DefaultFile,
	}
}

// configFile is the file that -c, the environment or the default names. An empty
// environment variable names none.
func configFile(c *cli.Context) string {
	if name := c.String("config"); name != "" {
		return name
	}
	return config.DefaultFile
}

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:   "check",
		Usage:  "say whether the configuration is good (exit 0) or what is wrong with it (exit 78)",
		Flags:  []cli.Flag{configFlag()},
		Action: check,
	}
}

// check prints the roles that would start and returns why the others would not.
func check(c *cli.Context) error {
	cfg, err := config.Load(configFile(c))
	if err != nil {
		return err
	}
	if len(cfg.Roles()) == 0 {
		return cfg.CheckRole(config.RoleMount)
	}
	var all []error
	for _, role := range cfg.Roles() {
		if err := checkRole(cfg, role); err != nil {
			fmt.Fprintf(c.App.Writer, "%s: %s: would not start\n", cfg.File, role)
			all = append(all, err)
			continue
		}
		fmt.Fprintf(c.App.Writer, "%s: %s: good\n", cfg.File, role)
		notes := cfg.Notes(role)
		if role == config.RoleMount {
			fmt.Fprintf(c.App.Writer, "%s: %s: capture: %s\n", cfg.File, role, mount.Capture(cfg))
			notes = append(notes, mount.Notes(cfg)...)
		}
		for _, note := range notes {
			fmt.Fprintf(c.App.Writer, "%s: %s: note: %s\n", cfg.File, role, note)
		}
	}
	return config.Join(all...)
}

// checkRole returns why the role would not start: what CheckRole says, and files of [tls]
// that are of no use. The error is a *config.Error.
func checkRole(cfg *config.Config, role config.Role) error {
	if err := cfg.CheckRole(role); err != nil || !cfg.TLS.Enabled() {
		return err
	}
	if _, err := certs.Open(cfg.TLS.Cert, cfg.TLS.Key, cfg.TLS.CA); err != nil {
		return cfg.RefuseTLS(err)
	}
	return nil
}
