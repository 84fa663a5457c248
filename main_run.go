package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"ftfuse/config"
	"ftfuse/internal/sched"
	"ftfuse/internal/systemd"
	"ftfuse/mount/holder"
)

// runFunc is the entry point of a role: it serves until ctx ends, then drains and
// returns nil.
type runFunc func(ctx context.Context, c *config.Config, log *slog.Logger) error

// levels are the values of log.level.
var levels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// newLogger writes to w as l says; level can be changed while it is in use.
func newLogger(w io.Writer, l config.Log, level *slog.LevelVar) *slog.Logger {
	level.Set(levels[l.Level])
	o := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// serve runs a role in the foreground until a signal ends it, or its holder (link; nil: there is
// none).
func serve(role config.Role, run runFunc, load func() (*config.Config, error), link *holder.Link, stderr io.Writer) error {
	cfg, err := load()
	if err != nil {
		return err
	}
	if err := checkRole(cfg, role); err != nil {
		return err
	}
	level := new(slog.LevelVar)
	log := newLogger(stderr, cfg.Log, level)
	slog.SetDefault(log)
	log.Info("starting", "role", string(role), "version", version, "config", cfg.File)
	for _, note := range cfg.Notes(role) {
		log.Info(note, "role", string(role), "config", cfg.File)
	}

	if err := sched.ShortTurns(); err != nil {
		log.Info("lines may come a few milliseconds later while programs use all CPUs", "error", err)
	}
	s := newSignals(log, link.Stops(), func() {
		systemd.Tell(log, systemd.Reloading())
		reload(log, level, role, load)
		systemd.Tell(log, systemd.Ready())
		link.Reloaded()
	})
	defer s.close() // behind the last word to the log, which may be a closed pipe
	err = run(s.ctx, cfg, log)
	if err != nil && !(errors.Is(err, context.Canceled) && s.ctx.Err() != nil) {
		log.Error("stopped", "role", string(role), "error", err)
		systemd.Tell(log, systemd.Failed(err))
		return &quietError{fmt.Errorf("%s: %w", role, err)}
	}
	log.Info("stopped", "role", string(role))
	return nil
}

// reload takes over what a running role can: the log's level. With [tls] the role itself
// reads its certificates again.
func reload(log *slog.Logger, level *slog.LevelVar, role config.Role, load func() (*config.Config, error)) {
	cfg, err := load()
	if err == nil {
		err = checkRole(cfg, role)
	}
	if err != nil {
		log.Error("reload refused, the old configuration stays", "error", err)
		return
	}
	next := levels[cfg.Log.Level]
	level.Set(min(next, level.Level(), slog.LevelInfo)) // so that this is said whatever the levels are
	log.Info("reloaded log.level; other settings but the content of the files of tls change with a restart in this version", "config", cfg.File, "level", cfg.Log.Level)
	level.Set(next)
}

// signals owns the process's signals while a role runs.
type signals struct {
	ctx    context.Context
	cancel context.CancelFunc
	ch     chan os.Signal
	wg     sync.WaitGroup
}

// newSignals cancels ctx on the first SIGTERM or SIGINT and exits on the second;
// SIGHUP calls hup. Writing to a closed pipe becomes an error instead of a death. What
// comes in stops, the signals of the holder, is counted apart: who signals all processes
// at once (pkill, systemctl kill) means one stop, though the holder passes its signal on.
func newSignals(log *slog.Logger, stops <-chan string, hup func()) *signals {
	s := &signals{ch: make(chan os.Signal, 8)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	signal.Notify(s.ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	s.wg.Add(1)
	go s.loop(log, stops, hup)
	return s
}

func (s *signals) loop(log *slog.Logger, stops <-chan string, hup func()) {
	defer s.wg.Done()
	own, passed := 0, 0
	for {
		select {
		case name := <-stops:
			passed++
			s.stop(log, name, passed)
		case sig, ok := <-s.ch:
			switch {
			case !ok:
				return
			case sig == syscall.SIGPIPE: // the reader of the log went away
			case sig == syscall.SIGHUP:
				hup()
			default:
				own++
				s.stop(log, sig.String(), own)
			}
		}
	}
}

// stop takes the nth wish to stop that came one way.
func (s *signals) stop(log *slog.Logger, name string, n int) {
	switch {
	case n > 1:
		log.Error("second signal, stopping at once; what was accepted stays queued", "signal", name)
		os.Exit(exitRuntime)
	case s.ctx.Err() == nil:
		log.Info("stopping", "signal", name)
		systemd.Tell(log, systemd.Stopping())
		s.cancel()
	}
}

// close gives the signals back and waits for the goroutine.
func (s *signals) close() {
	signal.Stop(s.ch)
	close(s.ch)
	s.wg.Wait()
	s.cancel()
}
