package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ftfuse/config"
	"ftfuse/internal/control"
	"ftfuse/internal/daemon"
	"ftfuse/internal/mountinfo"
	"ftfuse/internal/systemd"
	"ftfuse/mount"
	"ftfuse/mount/holder"
	"ftfuse/mount/kernel"
)

// Exit codes of mount(8) and umount(8), which their helpers use.
const (
	mountUsage       = 1 // a wrong option, or not allowed to
	mountSystem      = 2 // no process, no memory
	mountInterrupted = 8
	mountFailed      = 32
)

// Names of links to this program that mount(8) and umount(8) start.
const (
	mountHelper  = "mount.ftfuse"
	umountHelper = "umount." + kernel.FSType
)

// Environment of the processes that the helper starts.
const (
	backgroundEnv = "FTFUSE_BACKGROUND" // the mount itself
	syslogEnv     = "FTFUSE_SYSLOG"     // what carries its log to the system's log
)

// runHelper is this program under one of the names above, or part of a mount that was made
// under it; ours is false for any other.
func runHelper(args []string, stdout, stderr io.Writer) (code int, ours bool) {
	if len(args) == 0 {
		return 0, false
	}
	switch name := filepath.Base(args[0]); {
	case name == umountHelper:
		return umountMain(args, stderr), true
	case name != mountHelper && name != "mount."+kernel.FSType:
		return 0, false
	case os.Getenv(syslogEnv) != "":
		if daemon.Syslog(os.Stdin, "ftfuse") != nil {
			return mountSystem, true
		}
		return exitOK, true
	}
	h, err := parseHelper(args)
	if err == nil && (os.Getenv(backgroundEnv) != "" || os.Getenv(holder.FDEnv) != "" || holder.Resuming()) {
		return h.background(stderr), true
	}
	if err == nil {
		err = h.run(stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", mountHelper, err)
	}
	return mountCode(err), true
}

// mountCode is the exit code of mount(8) for err.
func mountCode(err error) int {
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage), errors.Is(err, os.ErrPermission):
		return mountUsage
	case errors.Is(err, context.Canceled):
		return mountInterrupted
	case errors.Is(err, daemon.ErrStart):
		return mountSystem
	}
	return mountFailed
}

// helper is a command line of mount(8)'s: what is to be mounted where.
type helper struct {
	args    []string
	spec    string // the first field of fstab: a configuration file, or any word
	dir     string
	options string // without those below
	file    string // config=, or spec if that is a path
	log     string // log=
	fake    bool
	sloppy  bool
	verbose bool
}

// parseHelper reads `mount.ftfuse SPEC DIR [-sfnv] [-N NS] [-o OPTIONS] [-t TYPE]` (mount(8),
// "External helpers").
func parseHelper(args []string) (*helper, error) {
	h := &helper{args: args}
	var words, options []string
	for i := 1; i < len(args); i++ {
		flag := args[i]
		if len(flag) < 2 || flag[0] != '-' {
			words = append(words, flag)
			continue
		}
		value := flag[2:]
		switch flag[1] {
		case 'o', 't', 'N':
			if value == "" {
				if i++; i == len(args) {
					return nil, usagef("%s: a value must follow", flag)
				}
				value = args[i]
			}
			if flag[1] == 'o' {
				options = append(options, strings.Split(value, ",")...)
			}
			if flag[1] == 'N' {
				return nil, usagef("-N: not supported; run mount in that namespace (nsenter --mount=%s)", value)
			}
		default:
			if err := h.flags(flag[1:]); err != nil {
				return nil, err
			}
		}
	}
	if len(words) != 2 {
		return nil, usagef("want SPEC and DIR, got %q; SPEC is a configuration file, or any word for %s", words, config.DefaultFile)
	}
	h.spec, h.dir = words[0], words[1]
	return h, h.take(options)
}

func (h *helper) flags(letters string) error {
	for _, c := range letters {
		switch c {
		case 's':
			h.sloppy = true
		case 'f':
			h.fake = true
		case 'v':
			h.verbose = true
		case 'n': // nothing is written to /etc/mtab
		default:
			return usagef("-%c: unknown option", c)
		}
	}
	return nil
}

// take sorts out the options that are for this helper alone.
func (h *helper) take(options []string) error {
	if strings.HasPrefix(h.spec, "/") {
		h.file = h.spec
	}
	var rest []string
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "config":
			h.file = value
		case "log":
			h.log = value
		default:
			rest = append(rest, o)
			continue
		}
		if !filepath.IsAbs(value) {
			return usagef("-o %s: write %s=/PATH", o, name)
		}
	}
	if h.file == "" {
		h.file = config.DefaultFile
	}
	h.options = strings.Join(rest, ",")
	if h.sloppy {
		h.options = config.Sloppy(h.options)
	}
	return nil
}

// mountFile is the mount that is asked for.
func (h *helper) mountFile() (*mountFile, error) {
	m, err := newMountFile(h.file, h.options, h.dir)
	if err != nil {
		return nil, err
	}
	m.options.Source, m.options.Background = h.spec, true
	return m, nil
}

// background is the mount itself, in the background: holder, worker, or both in one.
func (h *helper) background(stderr io.Writer) int {
	m, err := h.mountFile()
	if err == nil {
		err = m.main(stderr)
	}
	var quiet *quietError
	if err != nil && !errors.As(err, &quiet) {
		report(stderr, exitCode(err), err)
		_ = systemd.Failed(err) // the log says it too
	}
	return exitCode(err)
}

// run mounts, and returns when programs can write, or with the reason why they cannot.
func (h *helper) run(stdout io.Writer) error {
	m, err := h.mountFile()
	if err != nil {
		return err
	}
	cfg, _, err := m.read()
	if err != nil || h.fake {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	if err := awaitPredecessor(ctx, cfg); err != nil {
		return err
	}
	log, to, err := h.openLog(cfg)
	if err != nil {
		return err
	}
	defer log.Close()
	err = daemon.Start(ctx, daemon.Program{Path: "/proc/self/exe", Args: h.args, Env: []string{backgroundEnv + "=1"}, Log: log})
	if err != nil {
		return fmt.Errorf("%s on %s: %w; its log is in %s", h.spec, h.dir, err, to)
	}
	if h.verbose {
		fmt.Fprintf(stdout, "%s: %s mounted on %s, its log is in %s\n", mountHelper, h.spec, cfg.Mount.Point, to)
	}
	return nil
}

// openLog opens what the mount logs to: the file of log=, systemd's journal where this process
// writes there already, else the system's log. It makes the state directory.
func (h *helper) openLog(cfg *config.Config) (log *os.File, to string, err error) {
	if h.log != "" {
		log, err := os.OpenFile(h.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
		if err != nil {
			return nil, "", fmt.Errorf("-o log: %w", err)
		}
		return log, h.log, nil
	}
	if fd, ok := journal(); ok {
		return fd, "the journal", nil
	}
	dir := cfg.RoleDir(config.RoleMount)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", fmt.Errorf("make state directory: %w", err)
	}
	return daemon.OpenLog("/proc/self/exe", h.args[:1], []string{syslogEnv + "=1"}, filepath.Join(dir, "mount.log"))
}

// journal returns standard error if that is systemd's journal, as in a mount unit
// (systemd.exec(5), JOURNAL_STREAM).
func journal() (*os.File, bool) {
	var st syscall.Stat_t
	stream := os.Getenv("JOURNAL_STREAM")
	if stream == "" || syscall.Fstat(2, &st) != nil || stream != fmt.Sprintf("%d:%d", st.Dev, st.Ino) {
		return nil, false
	}
	return os.Stderr, true
}

// awaitPredecessor waits for one that was unmounted and is sending what it has. A mount
// that is there is refused.
func awaitPredecessor(ctx context.Context, cfg *config.Config) error {
	all, err := mountinfo.On(cfg.Mount.Point)
	if err != nil {
		return err
	}
	if n := len(all); n > 0 && all[n-1].Type == kernel.FSType && mount.Serves(cfg.Mount.Point) {
		return fmt.Errorf("%s: already mounted", cfg.Mount.Point)
	}
	return awaitEnd(ctx, cfg)
}

// endGrace is how long a mount may take to end beyond shutdown_timeout.
const endGrace = 15 * time.Second

// awaitEnd waits until the process of a mount that is no longer mounted has ended, which may
// take until shutdown_timeout.
func awaitEnd(ctx context.Context, cfg *config.Config) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.ShutdownTimeout+endGrace)
	defer cancel()
	return holder.AwaitEnd(ctx, cfg.RoleDir(config.RoleMount), control.SocketName)
}
