package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"ftfuse/config"
	"ftfuse/internal/control"
	"ftfuse/internal/status"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:   "status",
		Usage:  "show what the running roles are doing (exit 0; 1 if one of them does not answer, 78 beside what there is if the file is bad)",
		Flags:  []cli.Flag{configFlag(), roleFlag(), &cli.BoolFlag{Name: "json", Usage: "as JSON"}},
		Action: statusAction,
	}
}

// answer is what a role said, or why it did not.
type answer struct {
	role config.Role
	said status.Role
	raw  json.RawMessage
	err  error
}

func statusAction(c *cli.Context) error {
	var errs []error
	cfg, roles, err := chosenRoles(c)
	bad := errors.As(err, new(*config.Error))
	switch {
	case bad: // roles may run with what the file was before
		cfg, roles, errs = config.Locate(configFile(c)), config.Roles(), append(errs, err)
		if name := c.String("role"); name != "" {
			roles = []config.Role{config.Role(name)}
		}
	case err != nil:
		return err
	}
	var all []answer
	for _, role := range roles {
		a := answer{role: role}
		a.said, a.raw, a.err = control.Status(c.Context, cfg.RoleDir(role))
		if a.err != nil && bad {
			continue // nobody says that it should run
		}
		if a.err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", role, control.SocketPath(cfg.RoleDir(role)), a.err))
		}
		all = append(all, a)
	}
	show := showStatus
	if c.Bool("json") {
		show = encodeStatus
	}
	if err := show(c.App.Writer, all); err != nil {
		return fmt.Errorf("write the status: %w", err)
	}
	return errors.Join(errs...)
}

// showStatus writes what people read; who did not answer is in the error that follows.
func showStatus(w io.Writer, all []answer) error {
	first := true
	for _, a := range all {
		if a.err != nil {
			continue
		}
		if !first {
			fmt.Fprintln(w)
		}
		first = false
		if err := status.Text(w, &a.said); err != nil {
			return err
		}
	}
	return nil
}

// encodeStatus writes {"roles": […]}, an element for each role as it came, or with what
// went wrong.
func encodeStatus(w io.Writer, all []answer) error {
	type failure struct {
		Role  config.Role `json:"role"`
		Error string      `json:"error"`
	}
	doc := struct {
		Roles []any `json:"roles"`
	}{Roles: []any{}}
	for _, a := range all {
		if a.err != nil {
			doc.Roles = append(doc.Roles, failure{a.role, a.err.Error()})
		} else {
			doc.Roles = append(doc.Roles, a.raw)
		}
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(doc)
}
