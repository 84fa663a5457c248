package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Site is a small network of hosts on this machine. Each host is a network namespace with
// one interface, eth0; all of them hang on one bridge, which stands in a namespace of its
// own, so that nothing of the machine's own network is touched:
//
//	host a [eth0 10.77.0.1] ──┐
//	host b [eth0 10.77.0.2] ──┼── bridge (its own namespace)
//	host c [eth0 10.77.0.3] ──┘
//
// Where no namespace can be made, a host is an address of the loopback (127.77.0.n) and
// has no links that could be cut: see Site.Linked. File systems are the machine's in
// either case. Not safe for concurrent use; its hosts' methods are.
type Site struct {
	Bin string    // the ftfuse binary
	Dir string    // an existing folder on a real disk, the site's own
	Log io.Writer // where the roles' logs go, may be nil

	bridge *Namespace // nil: on the loopback
	hosts  []*Host
}

// LoopbackSite makes a site whose hosts are addresses of the loopback.
func LoopbackSite(bin, dir string, log io.Writer) *Site {
	return &Site{Bin: bin, Dir: dir, Log: log}
}

// NewSite makes a network without hosts. It falls back on the loopback if no namespace can
// be made.
func NewSite(bin, dir string, log io.Writer) (*Site, error) {
	s := LoopbackSite(bin, dir, log)
	bridge, err := NewNamespace()
	if errors.Is(err, ErrNoNamespace) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	s.bridge = bridge
	err = bridge.run("ip", "link", "add", "br0", "type", "bridge")
	if err == nil {
		err = bridge.run("ip", "link", "set", "br0", "up")
	}
	if err != nil { // a kernel without bridges
		s.bridge = nil
		return s, bridge.Close()
	}
	return s, nil
}

// Linked reports whether the hosts have links of their own, which Cut, Lose and Reset need.
func (s *Site) Linked() bool { return s.bridge != nil }

// Add makes one more host with a folder of its own below Dir.
func (s *Site) Add(name string) (*Host, error) {
	n := len(s.hosts) + 1
	h := &Host{Name: name, IP: fmt.Sprintf("127.77.0.%d", n), Dir: filepath.Join(s.Dir, name), site: s}
	for _, dir := range []string{h.Point(), h.Out(), h.State()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make a folder for host %s: %w", name, err)
		}
	}
	if s.Linked() {
		h.IP = fmt.Sprintf("10.77.0.%d", n)
		if err := s.link(h, fmt.Sprintf("port%d", n)); err != nil {
			return nil, fmt.Errorf("make host %s: %w", name, err)
		}
	}
	s.hosts = append(s.hosts, h)
	return h, nil
}

// link gives h a namespace and joins it to the bridge.
func (s *Site) link(h *Host, port string) error {
	var err error
	if h.net, err = NewNamespace(); err != nil {
		return err
	}
	for _, step := range []struct {
		in   *Namespace
		args []string
	}{
		{s.bridge, []string{"link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", h.net.path()}},
		{s.bridge, []string{"link", "set", port, "master", "br0", "up"}},
		{h.net, []string{"address", "add", h.IP + "/24", "dev", "eth0"}},
		{h.net, []string{"link", "set", "eth0", "up"}},
	} {
		if err := step.in.run("ip", step.args...); err != nil {
			_ = h.net.Close() // the error above says more
			return err
		}
	}
	return nil
}

// Host returns the host of a name, nil if there is none.
func (s *Site) Host(name string) *Host {
	for _, h := range s.hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

// Hosts are all hosts, in the order they were added.
func (s *Site) Hosts() []*Host { return append([]*Host(nil), s.hosts...) }

// Close kills what still runs, takes the mount points away and lets the network go. It is
// for the end, good or bad, and can be called twice.
func (s *Site) Close() {
	for _, h := range s.hosts {
		h.close()
	}
	if s.bridge != nil {
		_ = s.bridge.Close() // a descriptor for reading: nothing to lose
	}
}

// Host is one host of a site: an address, a folder, and at most one role at a time. Its
// methods are safe for concurrent use where they do not start or end the role.
type Host struct {
	Name string
	IP   string
	Dir  string

	// Config makes the TOML text of the host's role behind the keys `host` and `state_dir`; it
	// is asked at each start.
	Config func() string
	Kind   string   // the role: mount, relay or receive
	Env    []string // added to the role's environment
	// Resolv is a file that the role has for /etc/resolv.conf; "" is the machine's. Such a role
	// has file systems mounted for itself alone: it cannot be a mount.
	Resolv string
	// HostName is the key `host` of the TOML file; Name if empty.
	HostName string
	Role     *Role // the newest one started

	site *Site
	net  *Namespace // nil: on the loopback
}

// Addr is a port of the host, for the others' configurations.
func (h *Host) Addr(port int) string { return fmt.Sprintf("%s:%d", h.IP, port) }

// Point is where the host's mount is, if it has that role; Out a folder for its outputs;
// State its `state_dir`; File its TOML file.
func (h *Host) Point() string { return filepath.Join(h.Dir, "mnt") }

// Out is a folder for the host's outputs.
func (h *Host) Out() string { return filepath.Join(h.Dir, "out") }

// State is the host's `state_dir`.
func (h *Host) State() string { return filepath.Join(h.Dir, "state") }

// File is the host's TOML file.
func (h *Host) File() string { return filepath.Join(h.Dir, "ftfuse.toml") }

// Socket is where the host's role answers `ftfuse status`.
func (h *Host) Socket() string { return filepath.Join(h.State(), h.Kind, "ftfuse.sock") }

// WriteConfig writes the host's TOML file. Start does it too.
func (h *Host) WriteConfig() error {
	name := h.HostName
	if name == "" {
		name = h.Name
	}
	text := fmt.Sprintf("host = %q\nstate_dir = %q\n%s\n", name, h.State(), h.Config())
	if err := os.WriteFile(h.File(), []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the configuration of host %s: %w", h.Name, err)
	}
	return nil
}

// Launch starts the host's role and does not wait for it.
func (h *Host) Launch(env ...string) error {
	if err := h.WriteConfig(); err != nil {
		return err
	}
	return h.net.Do(func() error {
		if err := h.ownResolver(); err != nil {
			return err
		}
		r, err := startNamed(h.Name, nil, h.site.Bin, h.Kind, h.File(), h.site.Log, append(append([]string(nil), h.Env...), env...)...)
		if err == nil {
			h.Role = r
		}
		return err
	})
}

// ownResolver gives this thread, and what it starts, another /etc/resolv.conf.
func (h *Host) ownResolver() error {
	if h.Resolv == "" {
		return nil
	}
	if h.net == nil {
		return ErrNoLink // not a thread of its own
	}
	err := unix.Unshare(unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = unix.Mount(h.Resolv, "/etc/resolv.conf", "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("give %s a resolver of its own: %w", h.Name, err)
	}
	return nil
}

// Start starts the host's role and waits until it serves.
func (h *Host) Start(ctx context.Context, env ...string) error {
	if err := h.Launch(env...); err != nil {
		return err
	}
	return h.Role.Ready(ctx)
}

// Kill ends the host's role as kill -9 of each of its processes does, frozen or not.
func (h *Host) Kill() error {
	if h.Role == nil {
		return nil
	}
	return h.Role.Kill()
}

// Stop asks the role to stop and waits; it must exit with 0.
func (h *Host) Stop() error {
	if h.Role == nil || h.Role.Gone() {
		return nil
	}
	return h.Role.Stop(StopIn)
}

// Freeze stops every process of the role in its tracks (SIGSTOP): its connections stay, and
// nothing answers on them but the kernel. Thaw lets them go on.
func (h *Host) Freeze() error { return h.signal(syscall.SIGSTOP) }

// Thaw ends a Freeze.
func (h *Host) Thaw() error { return h.signal(syscall.SIGCONT) }

func (h *Host) signal(s syscall.Signal) error {
	for _, pid := range h.Role.Family() {
		if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("send %v to process %d of %s: %w", s, pid, h.Name, err)
		}
	}
	return nil
}

// Do runs f in a thread inside the host's network, see Namespace.Do.
func (h *Host) Do(f func() error) error { return h.net.Do(f) }

// close ends the role, good or bad, and takes the mount point and the network away.
func (h *Host) close() {
	_ = h.Kill()  // what has ended already is not an error
	for range 8 { // stacked or stale mounts, bounded
		if syscall.Unmount(h.Point(), syscall.MNT_DETACH) != nil {
			break
		}
	}
	if h.net != nil {
		_ = h.net.Close() // a descriptor for reading: nothing to lose
	}
}

// Wait waits d unless ctx ends: for how long a fault stands, or load runs.
func Wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait %v: %w", d, context.Cause(ctx))
	}
}
