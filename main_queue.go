package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"ftfuse/config"
	"ftfuse/internal/control"
	"ftfuse/internal/queuetool"
	"ftfuse/queue"
)

func queueCommand() *cli.Command {
	flags := []cli.Flag{configFlag(), roleFlag()}
	with := func(more ...cli.Flag) []cli.Flag { return append(slices.Clone(flags), more...) }
	json := &cli.BoolFlag{Name: "json", Usage: "as JSON"}
	cursor := &cli.StringFlag{Name: "cursor", Usage: "only what cursor `NAME` still needs (default: what any needs)"}
	return &cli.Command{
		Name:  "queue",
		Usage: "look into the durable queues of roles, running or stopped, mend them, and move what is in them",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list what is queued: by cursor, by segment file and by lane", Flags: with(json), Action: eachQueue(queueLs)},
			{Name: "cat", Usage: "print the records that are queued, with their attributes", Flags: with(cursor), Action: eachQueue(queueCat)},
			{Name: "verify", Usage: "read everything and name what is damaged (exit 0 whole, 1 damaged)", Flags: with(json), Action: eachQueue(queueVerify)},
			{Name: "repair", Usage: "make a stopped role's queue whose newest state is damaged usable again", Flags: flags, Action: oneQueue(queueRepair)},
			{
				Name: "export", Usage: "write what is queued to a file, for import on another host; marks nothing",
				Flags:  with(cursor, &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "to `FILE`, which must not exist (default: standard output)"}),
				Action: oneQueue(queueExport),
			},
			{Name: "import", Usage: "queue what export wrote", ArgsUsage: "[FILE]", Flags: flags, Action: oneQueue(queueImport)},
		},
	}
}

func roleFlag() cli.Flag {
	return &cli.StringFlag{Name: "role", Usage: "only `ROLE` (mount, relay or receive)"}
}

// errDamaged makes verify exit with 1; the report has been printed.
var errDamaged = errors.New("a queue is damaged")

// errNoQueue is a role that has not run on this host.
var errNoQueue = errors.New("there is no queue yet: the role has not run with this state_dir")

// chosenRoles returns the roles that --role names, or all that the file describes.
func chosenRoles(c *cli.Context) (*config.Config, []config.Role, error) {
	name := config.Role(c.String("role"))
	if name != "" && !slices.Contains(config.Roles(), name) {
		return nil, nil, usagef("%s: --role %q; write mount, relay or receive", commandName(c), name)
	}
	cfg, err := config.Load(configFile(c))
	if err != nil {
		return nil, nil, err
	}
	switch {
	case name != "" && cfg.Configured(name):
		return cfg, []config.Role{name}, nil
	case name == "" && len(cfg.Roles()) > 0:
		return cfg, cfg.Roles(), nil
	case name == "":
		name = config.RoleMount
	}
	return nil, nil, cfg.CheckRole(name) // says that it is missing
}

// roleQueue is the queue of one role: the role answers for it while it runs, else its
// files are read.
type roleQueue struct {
	cfg  *config.Config
	role config.Role
	dir  string
}

// eachQueue calls f for the queue of each chosen role.
func eachQueue(f func(c *cli.Context, q roleQueue) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		cfg, roles, err := chosenRoles(c)
		if err != nil {
			return err
		}
		var errs []error
		for _, role := range roles {
			q := roleQueue{cfg, role, cfg.QueueDir(role)}
			err := q.exists()
			if errors.Is(err, errNoQueue) && c.String("role") == "" {
				fmt.Fprintf(c.App.ErrWriter, "%s: %s: %v\n", role, q.dir, err)
				continue
			}
			if err == nil {
				err = f(c, q)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %s: %w", role, q.dir, err))
			}
		}
		return errors.Join(errs...)
	}
}

// oneQueue calls f for the queue of the role that --role names, or of the only one.
func oneQueue(f func(c *cli.Context, q roleQueue) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		cfg, roles, err := chosenRoles(c)
		if err != nil {
			return err
		}
		if len(roles) > 1 {
			return usagef("%s: %s describes several roles; name one with --role", commandName(c), cfg.File)
		}
		q := roleQueue{cfg, roles[0], cfg.QueueDir(roles[0])}
		if err = q.exists(); err == nil {
			err = f(c, q)
		}
		var usage *usageError
		if err != nil && !errors.As(err, &usage) {
			err = fmt.Errorf("%s: %s: %w", q.role, q.dir, err)
		}
		return err
	}
}

func (q roleQueue) exists() error {
	_, err := os.Stat(q.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return errNoQueue
	}
	return err
}

// remote asks the role, if it runs.
func (q roleQueue) remote() queuetool.Remote {
	return queuetool.Remote{Client: control.Client(q.cfg.RoleDir(q.role))}
}

// view calls f for the files of the stopped role.
func (q roleQueue) view(f func(*queue.View) error) error {
	v, err := queue.OpenView(q.dir)
	if err != nil {
		return inUse(err)
	}
	return errors.Join(f(v), v.Close())
}

// inUse explains why files cannot be read although no role answers.
func inUse(err error) error {
	if errors.Is(err, queue.ErrLocked) {
		return fmt.Errorf("%w, which does not answer on its socket: it starts or stops, try again", err)
	}
	return err
}

// export opens the role's export, of the running role or of its files.
func (q roleQueue) export(ctx context.Context, cursor string) (io.ReadCloser, error) {
	r, err := q.remote().Export(ctx, cursor)
	if !errors.Is(err, control.ErrNotRunning) {
		return r, err
	}
	v, err := queue.OpenView(q.dir)
	if err != nil {
		return nil, inUse(err)
	}
	pr, pw := io.Pipe()
	go func() {
		_, err := v.Export(ctx, pw, cursor)
		pw.CloseWithError(errors.Join(err, v.Close()))
	}()
	return pr, nil
}
