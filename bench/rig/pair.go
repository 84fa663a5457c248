package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// FUSE is the file system type that statfs(2) reports for a FUSE mount (linux/magic.h).
const FUSE = 0x65735546

// StopIn is how long a role may take to drain and stop.
const StopIn = 30 * time.Second

// Pair is a source and an aggregator on this machine, with a relay between them if Relayed
// is set: their state, their output and the TOML files, all below Dir. Set the text fields before the
// first start; they are TOML lines put into the tables their names say.
type Pair struct {
	Bin  string    // the ftfuse binary
	Dir  string    // an existing folder on a real disk, the pair's own
	Host string    // host name that the mount gives its records
	Log  io.Writer // where the roles' logs go, may be nil
	Env  []string  // added to the environment of both roles

	Queue        string // in [queue] of both
	Top          string // keys of both files that belong to no section
	MountTop     string // before [mount] of the source: [mount.queue] and other tables
	Mount        string // in [mount]
	Rules        string // whole [[mount.rule]] tables
	Attribution  string // open or write: of a last rule for all paths; "": none such
	Receive      string // in [receive]
	Outputs      string // whole [[receive.output]] tables; "" is one with all defaults
	MountState   string // state_dir of the source, default Dir/source
	ReceiveState string // state_dir of the aggregator, default Dir/aggregator
	Addr         string // where the receiver listens, default a free port of the loopback
	Relayed      bool   // the mount sends to a relay, which sends to the receiver
	Relay        string // in [relay]
	RelayAddr    string // where the relay listens, default a free port of the loopback

	MountRole, RelayRole, ReceiveRole *Role // RelayRole is nil where there is none
}

// NewPair returns a pair below dir, which is made if it is not there.
func NewPair(bin, dir string) (*Pair, error) {
	addr, err := FreeAddr()
	if err != nil {
		return nil, err
	}
	relay, err := FreeAddr()
	if err != nil {
		return nil, err
	}
	p := &Pair{
		Bin: bin, Dir: dir, Host: "web-01", Addr: addr, RelayAddr: relay,
		MountState: filepath.Join(dir, "source"), ReceiveState: filepath.Join(dir, "aggregator"),
	}
	for _, d := range []string{p.Point(), p.MountState, p.ReceiveState, p.OutDir()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("make a folder for the roles: %w", err)
		}
	}
	return p, nil
}

// FreeAddr returns an address of the loopback that nothing listened on just now.
func FreeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// Point is the mount point.
func (p *Pair) Point() string { return filepath.Join(p.Dir, "mnt") }

// OutDir is the `dir` of the receiver's default output.
func (p *Pair) OutDir() string { return filepath.Join(p.Dir, "out") }

// In is a path below the mount point; Out is where it comes out with the default output.
func (p *Pair) In(name string) string { return filepath.Join(p.Point(), name) }

// Out is the output file of a path below the mount point, with the default `file`.
func (p *Pair) Out(name string) string { return filepath.Join(p.OutDir(), p.Host, name) }

// MountConfig and ReceiveConfig are the paths of the two TOML files.
func (p *Pair) MountConfig() string { return filepath.Join(p.Dir, "mount.toml") }

// ReceiveConfig is the path of the receiver's TOML file.
func (p *Pair) ReceiveConfig() string { return filepath.Join(p.Dir, "receive.toml") }

// RelayConfig is the path of the relay's TOML file.
func (p *Pair) RelayConfig() string { return filepath.Join(p.Dir, "relay.toml") }

// WriteConfigs writes the TOML files. The starts do it too.
func (p *Pair) WriteConfigs() error {
	rules := p.Rules
	if p.Attribution != "" {
		rules += fmt.Sprintf("\n[[mount.rule]]\npath = \"**\"\nattribution = %q\n", p.Attribution)
	}
	next := p.Addr
	if p.Relayed {
		next = p.RelayAddr
	}
	mount := fmt.Sprintf("host = %q\nstate_dir = %q\n%s\n\n[queue]\n%s\n\n%s\n\n[mount]\npoint = %q\n%s\n\n%s\n\n[[mount.forward]]\nprimary = [%q]\n",
		p.Host, p.MountState, p.Top, p.Queue, p.MountTop, p.Point(), p.Mount, rules, next)
	outputs := p.Outputs
	if outputs == "" {
		outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\n", p.OutDir())
	}
	receive := fmt.Sprintf("host = \"aggregator\"\nstate_dir = %q\n%s\n\n[queue]\n%s\n\n[receive]\nlisten = %q\n%s\n\n%s\n",
		p.ReceiveState, p.Top, p.Queue, p.Addr, p.Receive, outputs)
	if err := os.WriteFile(p.MountConfig(), []byte(mount), 0o644); err != nil {
		return fmt.Errorf("write the mount's configuration: %w", err)
	}
	if err := os.WriteFile(p.ReceiveConfig(), []byte(receive), 0o644); err != nil {
		return fmt.Errorf("write the receiver's configuration: %w", err)
	}
	if !p.Relayed {
		return nil
	}
	relay := fmt.Sprintf("host = \"relay\"\nstate_dir = %q\n%s\n\n[queue]\n%s\n\n[relay]\nlisten = %q\n%s\n\n[[relay.forward]]\nprimary = [%q]\n",
		filepath.Join(p.Dir, "relay"), p.Top, p.Queue, p.RelayAddr, p.Relay, p.Addr)
	if err := os.WriteFile(p.RelayConfig(), []byte(relay), 0o644); err != nil {
		return fmt.Errorf("write the relay's configuration: %w", err)
	}
	return nil
}

// StartMount starts the source with env added and waits until it serves.
func (p *Pair) StartMount(ctx context.Context, env ...string) error {
	r, err := p.start(ctx, "mount", p.MountConfig(), env)
	p.MountRole = r
	return err
}

// StartReceive starts the receiver with env added and waits until it serves.
func (p *Pair) StartReceive(ctx context.Context, env ...string) error {
	r, err := p.start(ctx, "receive", p.ReceiveConfig(), env)
	p.ReceiveRole = r
	return err
}

// StartRelay starts the relay with env added and waits until it serves.
func (p *Pair) StartRelay(ctx context.Context, env ...string) error {
	r, err := p.start(ctx, "relay", p.RelayConfig(), env)
	p.RelayRole = r
	return err
}

func (p *Pair) start(ctx context.Context, role, config string, env []string) (*Role, error) {
	if err := p.WriteConfigs(); err != nil {
		return nil, err
	}
	r, err := Start(p.Bin, role, config, p.Log, append(append([]string(nil), p.Env...), env...)...)
	if err != nil {
		return nil, err
	}
	return r, r.Ready(ctx)
}

// StartBoth starts the receiver, the relay if there is one, then the mount.
func (p *Pair) StartBoth(ctx context.Context) error {
	if err := p.StartReceive(ctx); err != nil {
		return err
	}
	if p.Relayed {
		if err := p.StartRelay(ctx); err != nil {
			return err
		}
	}
	return p.StartMount(ctx)
}

// Roles are those that were started, in the order that data takes.
func (p *Pair) Roles() []*Role {
	return slices.DeleteFunc([]*Role{p.MountRole, p.RelayRole, p.ReceiveRole}, func(r *Role) bool { return r == nil })
}

// Stop stops the mount, which drains to the next, then that and so on. All must exit with 0.
func (p *Pair) Stop() error {
	var err error
	for _, r := range p.Roles() {
		err = errors.Join(err, r.Stop(StopIn))
	}
	return err
}

// Captures asks whether the mount's programs write through the kernel, as its ready line says.
func (p *Pair) Captures() string { return p.MountRole.ReadyAttr("capture") }

// Close kills what still runs and takes the mount point away. It is for the end, good or
// bad, and can be called twice.
func (p *Pair) Close() {
	for _, r := range p.Roles() {
		_ = r.Kill() // what has ended already is not an error
	}
	for range 8 { // stacked or stale mounts, bounded
		if syscall.Unmount(p.Point(), syscall.MNT_DETACH) != nil {
			return
		}
	}
}

// OnFUSE reports whether path lies on a FUSE file system that answers.
func OnFUSE(path string) bool {
	var st syscall.Statfs_t
	return syscall.Statfs(path, &st) == nil && st.Type == FUSE
}

// ErrStill is WaitSize's error when a file has stopped growing.
var ErrStill = errors.New("no more comes")

// WaitSize waits until the file at path has at least size bytes, and returns how long
// after the call that was seen. It looks every look, and gives up with ErrStill when the size
// has not grown for still.
func WaitSize(ctx context.Context, path string, size int64, look, still time.Duration) (time.Duration, error) {
	began := time.Now()
	last, grew := int64(-1), began
	for {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err == nil {
			if st.Size >= size {
				return time.Since(began), nil
			}
			if st.Size != last {
				last, grew = st.Size, time.Now()
			}
		}
		if err := ctx.Err(); err != nil {
			return time.Since(began), fmt.Errorf("wait for %d bytes in %s (%d there): %w", size, path, max(last, 0), err)
		}
		if time.Since(grew) > still {
			return time.Since(began), fmt.Errorf("wait for %d bytes in %s: %d there and none came for %v: %w", size, path, max(last, 0), still, ErrStill)
		}
		pause(look)
	}
}

// pause sleeps d in this thread: time.Sleep rounds short times up to a millisecond.
func pause(d time.Duration) {
	ts := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&ts, nil) // woken early: looks early
}
