package holder

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/systemd"
)

// manager is a service manager's side of sd_notify(3) with a store of descriptors.
type manager struct {
	t    *testing.T
	c    *net.UnixConn
	path string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &manager{t, c, path}
}

// next is the next notification, with its descriptors.
func (m *manager) next() (string, []*os.File) {
	m.t.Helper()
	if err := m.c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		m.t.Fatal(err)
	}
	b, oob := make([]byte, 4096), make([]byte, 256)
	n, k, _, _, err := m.c.ReadMsgUnix(b, oob)
	if err != nil {
		m.t.Fatal(err)
	}
	var files []*os.File
	for _, fd := range descriptors(oob[:k]) {
		f := os.NewFile(uintptr(fd), "stored")
		m.t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return string(b[:n]), files
}

func (m *manager) wants(want string) []*os.File {
	m.t.Helper()
	got, files := m.next()
	if got != want {
		m.t.Fatalf("notified %q, want %q", got, want)
	}
	return files
}

// Restarted by systemd, the next holder finds the connection of one that was killed
// together with its worker.
func TestSystemdKeepsTheConnectionOfAKilledHolder(t *testing.T) {
	for _, order := range [][2]int{{0, 1}, {1, 0}} { // which is not promised
		keepsInOrder(t, order)
	}
}

func keepsInOrder(t *testing.T, order [2]int) {
	t.Helper()
	m := newManager(t)
	b := newBench(t)
	b.start([]string{systemd.Env + "=" + m.path})
	pid := b.served("1", "mounted")
	m.wants("FDSTOREREMOVE=1\nFDNAME=ftfuse")
	files := m.wants("FDSTORE=1\nFDNAME=ftfuse")
	if len(files) != 2 {
		t.Fatalf("%d descriptors stored, want the connection and its state", len(files))
	}
	m.wants("READY=1")

	b.signal(unix.SIGSTOP)
	kill(t, pid)
	b.signal(unix.SIGKILL)
	_, _ = b.cmd.Wait()

	// Other sockets may be among what was stored.
	other, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	b.startListening([]string{systemd.Env + "=" + m.path}, "ftfuse:other:ftfuse", files[order[0]], other, files[order[1]])
	files[0].Close() // what is left is the holder's own
	files[1].Close()
	pid = b.served("1", "taken")
	m.wants("READY=1")
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || strings.Contains(string(env), "LISTEN_") || strings.Contains(string(env), systemd.Env) {
		t.Errorf("the worker's environment has what is the holder's: %q %v", env, err)
	}
	b.signal(unix.SIGTERM)
	m.wants("STOPPING=1")
	b.says("drained")
	m.wants("FDSTOREREMOVE=1\nFDNAME=ftfuse")
	b.exits(0)
	b.dropped()
}

// TestAReloadIsToldToSystemd, which waits for its end with Type=notify-reload; one that comes
// while no worker listens reaches the next one.
func TestAReloadIsToldToSystemd(t *testing.T) {
	m, b := newManager(t), newBench(t)
	b.start([]string{systemd.Env + "=" + m.path})
	pid := b.served("1", "mounted")
	for range 3 { // FDSTOREREMOVE, FDSTORE, READY
		m.next()
	}
	for range 2 {
		b.signal(unix.SIGHUP)
		b.says("hangup")
		if got, _ := m.next(); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
			t.Fatalf("notified %q", got)
		}
		m.wants("READY=1")
	}
	b.signal(unix.SIGSTOP) // it hears of the worker's end and of the signal together
	kill(t, pid)
	b.signal(unix.SIGHUP)
	b.signal(unix.SIGCONT)
	b.served("1", "taken")
	if got, _ := m.next(); !strings.HasPrefix(got, "RELOADING=1\n") {
		t.Fatalf("notified %q", got)
	}
	m.wants("READY=1")
	b.says("hangup")
}

// startListening starts a holder as systemd does, with descriptors passed: LISTEN_PID has
// to be its own pid, so a shell sets it and becomes the holder.
func (b *bench) startListening(env []string, names string, list ...*os.File) {
	b.t.Helper()
	bin := b.bin
	shell := filepath.Join(b.dir, "systemd.sh")
	script := fmt.Sprintf("#!/bin/sh\nLISTEN_PID=$$ LISTEN_FDS=%d LISTEN_FDNAMES=%s exec %s -x\n", len(list), names, bin)
	if err := os.WriteFile(shell, []byte(script), 0o755); err != nil {
		b.t.Fatal(err)
	}
	b.bin = shell
	b.start(env, list...)
	b.bin = bin
}

func TestWhatSystemdKeptForAnotherMountIsDropped(t *testing.T) {
	b := newBench(t)
	w, err := os.OpenFile(filepath.Join(b.dir, "conn"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	state, err := json.Marshal(keptState{V: reexecVersion, Point: "/elsewhere", State: []byte("saved")})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := memory("state", state)
	if err != nil {
		t.Fatal(err)
	}
	mem := os.NewFile(uintptr(fd), "state")
	b.startListening(nil, "ftfuse:ftfuse", w, mem)
	w.Close()
	mem.Close()
	b.served("1", "mounted")
}

func TestAConnectionThatTheKernelDroppedIsDead(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if Dead(int(w.Fd())) {
		t.Error("a pipe with a reader is dead")
	}
	r.Close() // EPOLLERR, as of /dev/fuse
	if !Dead(int(w.Fd())) {
		t.Error("a pipe without a reader is not")
	}
}

func TestMountedAtReadsTheList(t *testing.T) {
	if dev, err := mountedAt("/proc"); dev != "" || err != nil {
		t.Errorf("/proc is %q, %v", dev, err)
	}
}
