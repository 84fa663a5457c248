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
	"time"

	"ftfuse/config"
	"ftfuse/internal/reload"
	"ftfuse/internal/sched"
	"ftfuse/internal/systemd"
)

// runFunc is the entry point of a role: it serves until ctx ends, then drains and
// returns nil.
type runFunc func(ctx context.Context, c *config.Config, log *slog.Logger, h *reload.Handle) error

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

// serve runs a role in the foreground until a signal ends it, or its holder, which stops
// (nil: there is none) comes from. load reads the file, for the start and for each reload;
// reloaded (nil: nobody) hears how each ended.
func serve(role config.Role, run runFunc, load func() (*config.Config, error), stops <-chan string, reloaded func(config.Adopted, error), stderr io.Writer) error {
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
	h := reload.New(role, cfg, log)
	again := func() (*config.Config, error) {
		cfg, err := load()
		if err == nil {
			err = checkRole(cfg, role)
		}
		return cfg, err
	}
	s := newSignals(log, stops)
	defer s.close() // behind the last word to the log, which may be a closed pipe
	s.watch(syscall.SIGHUP, func() {
		systemd.Tell(log, systemd.Reloading())
		a, err := takeOver(s.ctx, h, log, level, again)
		systemd.Tell(log, systemd.Ready())
		if reloaded != nil {
			reloaded(a, err)
		}
	})
	s.watch(syscall.SIGUSR1, func() { h.Reopen(s.ctx) })
	err = run(s.ctx, cfg, log, h)
	if err != nil && !(errors.Is(err, context.Canceled) && s.ctx.Err() != nil) {
		log.Error("stopped", "role", string(role), "error", err)
		systemd.Tell(log, systemd.Failed(err))
		return &quietError{fmt.Errorf("%s: %w", role, err)}
	}
	log.Info("stopped", "role", string(role))
	return nil
}

// takeOver has the role take over its file as it is now, and says what came of it.
func takeOver(ctx context.Context, h *reload.Handle, log *slog.Logger, level *slog.LevelVar, load func() (*config.Config, error)) (config.Adopted, error) {
	a, err := h.Reload(ctx, load)
	if err != nil {
		return a, err // it is logged
	}
	next := levels[a.Config.Log.Level]
	level.Set(min(next, level.Level(), slog.LevelInfo)) // so that this is said whatever the levels are
	log.Info("reloaded", "config", a.Config.File, "changed", a.Changed)
	for _, r := range a.Restart {
		log.Warn("needs a restart", "config", a.Config.File, "key", r)
	}
	level.Set(next)
	return a, nil
}

// watchPatience is how long the end waits for a reload that hangs, though the role has stopped: the
// file may be on a server that is gone.
const watchPatience = 5 * time.Second

// signals owns the process's signals while a role runs.
type signals struct {
	ctx    context.Context
	cancel context.CancelFunc
	ch     chan os.Signal
	wg     sync.WaitGroup // of loop

	log      *slog.Logger
	watching sync.WaitGroup
	patience time.Duration // with what watch does, at the end
}

// newSignals cancels ctx on the first SIGTERM or SIGINT and exits on the second. Writing to
// a closed pipe becomes an error instead of a death. What
// comes in stops, the signals of the holder, is counted apart: who signals all processes
// at once (pkill, systemctl kill) means one stop, though the holder passes its signal on.
func newSignals(log *slog.Logger, stops <-chan string) *signals {
	s := &signals{ch: make(chan os.Signal, 8), log: log, patience: watchPatience}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	signal.Notify(s.ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGPIPE)
	s.wg.Add(1)
	go s.loop(log, stops)
	return s
}

// watch calls do for each signal sig until ctx ends: once more for all that come meanwhile.
func (s *signals) watch(sig os.Signal, do func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, sig)
	s.watching.Go(func() {
		for {
			select {
			case <-ch:
				do()
			case <-s.ctx.Done():
				return // it stays caught: it must not end a role that drains
			}
		}
	})
}

func (s *signals) loop(log *slog.Logger, stops <-chan string) {
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

// close waits for the goroutines and gives the signals back: not before what watch does has ended,
// which may write to the log. Where that hangs they stay caught: the process is to end, and with it.
func (s *signals) close() {
	s.cancel()
	ended := make(chan struct{})
	go func() { s.watching.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(s.patience):
		s.log.Warn("a reload hangs, and is not waited for")
		return
	}
	signal.Stop(s.ch)
	close(s.ch)
	s.wg.Wait()
}
