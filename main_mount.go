package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/urfave/cli/v2"

	"ftfuse/config"
	"ftfuse/internal/reload"
	"ftfuse/mount"
	"ftfuse/mount/holder"
)

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "mount, capture what is written and forward it",
		ArgsUsage: "[MOUNTPOINT]",
		Flags: []cli.Flag{
			configFlag(),
			&cli.StringFlag{Name: "options", Aliases: []string{"o"}, Usage: "mount `OPTIONS`, such as allow_other,uid=1000,gid=1000,umask=022"},
			&cli.BoolFlag{Name: "handover", Usage: "swap the running mount's worker for the binary that is now installed, and its configuration for FILE as it is now; programs notice nothing"},
		},
		Action: mountAction,
	}
}

// mountAction is one of four processes: the holder, its worker, a mount without a holder,
// or who asks the holder for a handover.
func mountAction(c *cli.Context) error {
	if c.Args().Len() > 1 {
		return usagef("ftfuse mount: unexpected argument %q; options stand before MOUNTPOINT", c.Args().Get(1))
	}
	m, err := newMountFile(configFile(c), c.String("options"), c.Args().First())
	if err != nil {
		return err
	}
	if c.Bool("handover") && !holder.Resuming() {
		return m.handover(c.App.Writer)
	}
	return m.main(c.App.ErrWriter)
}

// mountFile is what the command line says of a mount.
type mountFile struct {
	file      string
	overrides []config.Override
	options   mount.Options
}

// newMountFile is the mount of a configuration file with -o OPTIONS and MOUNTPOINT, which may
// be empty, before it.
func newMountFile(file, options, point string) (*mountFile, error) {
	o, err := config.MountOptions(options)
	if err != nil {
		return nil, usagef("ftfuse mount: -o %s: %v", options, err)
	}
	return &mountFile{
		file: file, overrides: []config.Override{o, config.MountPoint(point)},
		options: mount.Options{Flags: config.MountFlags(options)},
	}, nil
}

// main is the holder, its worker, or a mount without a holder.
func (m *mountFile) main(stderr io.Writer) error {
	if holder.Resuming() {
		return hold(holder.Options{}, stderr)
	}
	link, err := holder.FromEnv()
	if err != nil {
		return err
	}
	if link != nil {
		err := m.work(link, stderr)
		link.Failed(err)
		return err
	}
	return m.start(stderr)
}

// read reads the file and checks what it says of the mount.
func (m *mountFile) read() (cfg *config.Config, text []byte, err error) {
	if text, err = config.Read(m.file); err != nil {
		return nil, nil, err
	}
	if cfg, err = config.Parse(m.file, text, m.overrides...); err != nil {
		return nil, nil, err
	}
	return cfg, text, checkRole(cfg, config.RoleMount)
}

// start becomes the holder, which starts the workers, or serves without one.
func (m *mountFile) start(stderr io.Writer) error {
	cfg, text, err := m.read()
	if err != nil {
		return err
	}
	if cfg.Mount.HolderTimeout == 0 {
		return m.serve(mount.Worker{Options: m.options}, cfg, stderr)
	}
	return hold(holder.Options{Settings: mount.HolderSettings(cfg), Config: text}, stderr)
}

// work is the worker of a holder, which may say what to use instead of the file.
func (m *mountFile) work(link *holder.Link, stderr io.Writer) (err error) {
	var cfg *config.Config
	text, given := link.Config()
	if given {
		cfg, err = m.parse(text)
	} else {
		cfg, text, err = m.read()
	}
	if err != nil {
		return err
	}
	return m.serve(mount.Worker{Link: link, Version: version, Text: text, Options: m.options}, cfg, stderr)
}

// reloadedText parts, in what a holder keeps, the text that the mount was started with from one
// that was reloaded since, with keys that need a restart, and that from the on_full in force, which
// is perhaps neither's (mount keeps it while the kernel writes). No TOML file has it.
const reloadedText = "\x00"

// keep is what a holder is to keep of a reload: text, which was reloaded, or so much of it as a.
func keep(begun, text []byte, a config.Adopted) []byte {
	if len(a.Restart) == 0 {
		return text
	}
	begun, _, _ = bytes.Cut(begun, []byte(reloadedText))
	return bytes.Join([][]byte{begun, text, []byte(a.Config.Mount.Queue.OnFull)}, []byte(reloadedText))
}

// parse is the configuration in force, as a holder keeps it.
func (m *mountFile) parse(kept []byte) (*config.Config, error) {
	parts := bytes.SplitN(kept, []byte(reloadedText), 3)
	cfg, err := config.Parse(m.file, parts[0], m.overrides...)
	if err != nil || len(parts) == 1 {
		return cfg, err
	}
	next, err := config.Parse(m.file, parts[1], m.overrides...)
	if err != nil {
		return nil, err
	}
	cfg = cfg.Adopt(next, config.RoleMount).Config
	if len(parts) > 2 { // else a version before wrote it
		cfg.Mount.Queue.OnFull = config.FullPolicy(parts[2])
	}
	return cfg, nil
}

// serve runs the role with cfg; a reload reads the file.
func (m *mountFile) serve(w mount.Worker, cfg *config.Config, stderr io.Writer) error {
	run := func(ctx context.Context, cfg *config.Config, log *slog.Logger, h *reload.Handle) error {
		w.Reload = h
		return mount.Run(ctx, cfg, log, w)
	}
	first := true // load is called once before any reload
	var text []byte
	load := func() (again *config.Config, err error) {
		if first {
			first = false
			return cfg, nil
		}
		again, text, err = m.read()
		return again, err
	}
	reloaded := func(a config.Adopted, err error) {
		if err != nil {
			w.Link.Reloaded(nil, nil)
			return
		}
		s := mount.HolderSettings(a.Config)
		w.Link.Reloaded(&s, keep(w.Text, text, a))
	}
	return serve(config.RoleMount, run, load, w.Link.Stops(), reloaded, stderr)
}

// hold is the holder. Its exit code is its worker's.
func hold(o holder.Options, stderr io.Writer) error {
	o.Args, o.Version = os.Args, version
	o.Logger = func(level, format string) *slog.Logger {
		return newLogger(stderr, config.Log{Level: level, Format: format}, new(slog.LevelVar))
	}
	code, err := holder.Run(o)
	if err != nil {
		return err
	}
	if code != exitOK {
		return &quietError{&codeError{code}}
	}
	return nil
}

// codeError is the exit code of another process that this one passes on.
type codeError struct{ code int }

func (e *codeError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// handover asks the running holder for it.
func (m *mountFile) handover(stdout io.Writer) error {
	cfg, _, err := m.read()
	if err != nil {
		return err
	}
	now, err := holder.RequestHandover(cfg.RoleDir(config.RoleMount))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "version %s serves %s\n", now, cfg.Mount.Point)
	return err
}
