package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"ftfuse/config"
	"ftfuse/mount"
	"ftfuse/mount/offline"
)

// sendPatience is how long a mount may be away, as while it is restarted.
const sendPatience = 30 * time.Second

func sendCommand() *cli.Command {
	return &cli.Command{
		Name:      "send",
		Usage:     "hand local files, or standard input, to the queue of this host's mount, each byte once",
		ArgsUsage: "[FILE...]",
		Flags: []cli.Flag{
			configFlag(),
			&cli.StringFlag{Name: "as", Usage: "`PATH` below the mount point that the bytes are said to come from; with a slash at its end the files' names follow"},
			&cli.BoolFlag{Name: "again", Usage: "send files from their beginning, also what was sent before"},
			&cli.StringFlag{Name: "id", Usage: "`NAME` of what comes from standard input: sent again under that name after an interruption, it goes on where it was"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "say nothing but errors"},
		},
		Action: sendAction,
	}
}

func sendAction(c *cli.Context) error {
	files := c.Args().Slice()
	stream := len(files) == 0 || len(files) == 1 && files[0] == "-"
	as := c.String("as")
	switch {
	case as == "":
		return usagef("ftfuse send: --as PATH must say under which path; options stand before FILE")
	case !utf8.ValidString(as) || !utf8.ValidString(c.String("id")):
		return usagef("ftfuse send: --as and --id must be UTF-8")
	case stream && strings.HasSuffix(as, "/"):
		return usagef("ftfuse send: --as %s: standard input has no name that could follow the slash", as)
	case stream && c.Bool("again"):
		return usagef("ftfuse send: --again is for files; give standard input another --id")
	case !stream && c.String("id") != "":
		return usagef("ftfuse send: --id is for standard input; files are known by themselves")
	case len(files) == 0 && terminal(os.Stdin):
		return usagef("ftfuse send: FILE must follow, or standard input be redirected")
	}
	cfg, err := config.Load(configFile(c))
	if err != nil {
		return err
	}
	if err := checkRole(cfg, config.RoleMount); err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer cancel()
	level := new(slog.LevelVar)
	log := newLogger(c.App.ErrWriter, config.Log{Level: "warn", Format: cfg.Log.Format}, level)
	w := &sending{c: c, ctx: ctx}
	w.s = &offline.Sender{Patience: sendPatience, Find: func(ctx context.Context) (offline.Found, error) {
		return mount.FindSend(ctx, cfg, log)
	}}
	if stream {
		err = w.stream(os.Stdin, as)
	} else {
		err = w.files(files, as)
	}
	return errors.Join(err, w.s.Close())
}

// sending is one run of the command.
type sending struct {
	c   *cli.Context
	ctx context.Context
	s   *offline.Sender
}

func (w *sending) files(files []string, as string) error {
	for _, name := range files {
		to := as
		if strings.HasSuffix(as, "/") {
			to += filepath.Base(name)
		}
		if err := w.file(name, to); err != nil {
			return err
		}
	}
	return nil
}

func (w *sending) file(name, as string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	b := newBar(w.progress(), name)
	w.s.Progress = b.show
	n, err := w.s.File(w.ctx, f, as, w.c.Bool("again"))
	b.end()
	return w.said(name, as, n, b, err)
}

func (w *sending) stream(r io.Reader, as string) error {
	b := newBar(w.progress(), "standard input")
	w.s.Progress = b.show
	n, err := w.s.Stream(w.ctx, r, as, w.c.String("id"))
	b.end()
	return w.said("standard input", as, n, b, err)
}

// progress is where a bar is shown: nowhere but on a terminal.
func (w *sending) progress() io.Writer {
	if w.c.Bool("quiet") || !terminal(w.c.App.ErrWriter) {
		return io.Discard
	}
	return w.c.App.ErrWriter
}

// said tells what became of one file.
func (w *sending) said(name, as string, n int64, b *bar, err error) error {
	if w.ctx.Err() != nil && err != nil {
		return fmt.Errorf("interrupted: %d bytes of %s are in the queue; %s", b.pos, name, w.resume(name))
	}
	if err != nil {
		return fmt.Errorf("send %s as %s: %w; %d bytes of it are in the queue, %s", name, as, err, b.pos, w.resume(name))
	}
	if w.c.Bool("quiet") {
		return nil
	}
	before := ""
	if b.first > 0 {
		before = fmt.Sprintf(", behind %d that were sent before", b.first)
	}
	_, err = fmt.Fprintf(w.c.App.Writer, "%s: %d bytes are in the queue as %s%s\n", name, n, as, before)
	return err
}

func (w *sending) resume(name string) string {
	if name == "standard input" && w.c.String("id") == "" {
		return "and without --id there is no going on"
	}
	return "the same command goes on there"
}
