package kernel

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const appending = unix.O_CREAT | unix.O_WRONLY | unix.O_APPEND

// TestAMegabyteIsOneRequest: INIT was rewritten. The library alone agrees on 128 KiB.
func TestAMegabyteIsOneRequest(t *testing.T) {
	r := newRig(t)
	p := r.program()
	fd := p.open("plain", unix.O_CREAT|unix.O_WRONLY)
	p.want("ok 1048576", "big", fd, MaxWrite, 0)
	if got, want := r.await("WRITE"), "WRITE plain 1048576"; got != want {
		t.Errorf("a write(2) of 1 MiB: %q, want %q", got, want)
	}
	// What is not aligned may be a page less, and comes whole in the end.
	p.want("ok 1044480", "big", fd, MaxWrite-4096, 1)
	if got, want := r.await("WRITE"), "WRITE plain 1044480"; got != want {
		t.Errorf("a write(2) of 1 MiB less a page, not aligned: %q, want %q", got, want)
	}
	p.want("ok 3000000", "big", fd, 3000000, 1)
	if n := len(r.behind("plain")); n != 1048576+1044480+3000000 {
		t.Errorf("%d bytes came", n)
	}
	// After a takeover the library of another process reads into buffers of its own.
	r.kill()
	r.serve()
	p.want("ok 1048576", "big", fd, MaxWrite, 0)
	if got, want := r.await("WRITE"), "WRITE plain 1048576"; got != want {
		t.Errorf("a write(2) of 1 MiB after a takeover: %q, want %q", got, want)
	}
}

// TestTheKernelWrites: with passthrough no WRITE reaches the server, and every byte the
// backing file.
func TestTheKernelWrites(t *testing.T) {
	r := newRig(t)
	if line := r.all[0]; line != "ready passthrough=true max_write=1048576" {
		t.Fatal(line)
	}
	p := r.program()
	fd := p.open("a", appending) // answered by RespondCreate
	p.want("ok 1000", "many", fd, "012345678", 1000)
	p.want("ok 0", "close", fd)
	fd = p.open("a", unix.O_WRONLY|unix.O_APPEND) // and by RespondOpen
	p.want("ok 4", "write", fd, "end")
	if got, want := r.behind("a"), strings.Repeat("012345678\n", 1000)+"end\n"; got != want {
		t.Errorf("%d bytes behind the file, want %d", len(got), len(want))
	}
	r.settle()
	if n := r.heard("WRITE a"); n != 0 {
		t.Errorf("%d writes reached the server", n)
	}
}

// TestWithoutPassthroughTheServerWrites: a kernel that does not offer it.
func TestWithoutPassthroughTheServerWrites(t *testing.T) {
	r := newRig(t, "FTFUSE_FAILPOINTS=kernel/no-passthrough=error")
	if line := r.all[0]; line != "ready passthrough=false max_write=1048576" {
		t.Fatal(line)
	}
	p := r.program()
	p.want("ok 4", "write", p.open("a", appending), "one")
	r.settle()
	if r.heard("WRITE a 4") != 1 || r.behind("a") != "one\n" {
		t.Errorf("the server had no WRITE; behind: %q", r.behind("a"))
	}
}

// TestTakeOver: a second process goes on with the connection of one that was killed. A
// program sees nothing of it but time; what was in flight comes again, marked; what the
// kernel knows (nodes, handles, backing ids) is as good as before.
func TestTakeOver(t *testing.T) {
	r := newRig(t)
	app, other := r.program(), r.program()
	a := app.open("a", appending)
	app.want("ok 7", "write", a, "before")
	hang := other.open("hang-plain", unix.O_CREAT|unix.O_RDWR)
	other.start("write", hang, "in-flight")
	r.await("WRITE hang-plain 10")
	r.kill()
	app.want("ok 8", "write", a, "nobody!")
	for round := range 3 {
		r.serve()
		if round == 0 {
			r.await("WRITE hang-plain 10 resent")
			if got := other.result(); got != "ok 10" {
				t.Fatalf("the write in flight: %s", got)
			}
		}
		more := app.open("a", unix.O_WRONLY|unix.O_APPEND) // by the backing id of the first process
		app.want("ok 6", "write", more, "taken")
		app.want("ok 0", "close", more)
		app.want("ok 6", "write", a, "after")
		r.settle()
		r.kill()
	}
	if got, want := r.behind("a"), "before\nnobody!\n"+strings.Repeat("taken\nafter\n", 3); got != want {
		t.Errorf("behind the appended file: %q, want %q", got, want)
	}
	if got := r.behind("hang-plain"); got != "in-flight\n" {
		t.Errorf("behind the other: %q", got)
	}
	if n := r.heard("WRITE a"); n != 0 {
		t.Errorf("%d kernel writes reached a server", n)
	}
	if n := r.heard("ready passthrough=true max_write=1048576"); n != 4 {
		t.Errorf("%d of 4 servers have what was negotiated", n)
	}
}

// TestTheConnectionEndsWithItsLastDescriptor: a holder that drops it makes programs get
// ENOTCONN, and leaves nobody waiting.
func TestTheConnectionEndsWithItsLastDescriptor(t *testing.T) {
	r := newRig(t)
	p := r.program()
	hang := p.open("hang-plain", unix.O_CREAT|unix.O_RDWR)
	p.start("write", hang, "x")
	r.await("WRITE hang-plain 2")
	r.kill()
	r.drop()
	if got := p.result(); got != "ECONNABORTED" {
		t.Errorf("a write in flight: %s, want ECONNABORTED", got)
	}
	p.want("ENOTCONN", "write", hang, "x")
}

// TestUnmountEndsTheServer: both descriptors of a process see it.
func TestUnmountEndsTheServer(t *testing.T) {
	r := newRig(t)
	if busy, err := Unmount(r.point); busy || err != nil {
		t.Fatal(busy, err)
	}
	r.await("end")
}

// TestAMountOverNothingSaysSo, and leaves nothing behind.
func TestAMountOverNothingSaysSo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	_, err := Mount(filepath.Join(t.TempDir(), "missing"), Options{})
	if err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("error %v", err)
	}
}

// TestAUserWhoIsNotRootMountsWithFusermount: passthrough is off, the 1 MiB write is not.
// The user needs a /dev/fuse that it may open, here in a mount namespace of its own.
func TestAUserWhoIsNotRootMountsWithFusermount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	if _, err := exec.LookPath(helperName); err != nil {
		t.Skip("the package fuse3 is not installed")
	}
	if os.Getenv("FTFUSE_KERNEL_TEST_USER") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "FTFUSE_KERNEL_TEST_USER=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	r := stoppedRig(t)
	node := filepath.Join(t.TempDir(), "fuse")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(node, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(node, "/dev/fuse", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	open(t, r.point, r.dir, os.Args[0])
	r.cred = &syscall.Credential{Uid: 65534, Gid: 65534}
	if line := r.launch(); line != "ready passthrough=false max_write=1048576" {
		t.Fatal(line)
	}
	// Root is refused by a mount without allow_other, so its owner writes.
	cmd := exec.Command("/bin/sh", "-c", "echo hello >>"+filepath.Join(r.point, "a"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.await("WRITE a 6")
	cmd = exec.Command("fusermount3", "-u", r.point)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.await("end")
}

// open lets everybody into what lies at paths.
func open(t *testing.T, paths ...string) {
	t.Helper()
	for _, p := range paths {
		for dir := filepath.Dir(p); dir != "/"; dir = filepath.Dir(dir) {
			if st, err := os.Stat(dir); err == nil && st.Mode().Perm()&0o5 != 0o5 {
				if err := os.Chmod(dir, st.Mode()|0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
		if st, err := os.Stat(p); err == nil && st.IsDir() {
			if err := os.Chown(p, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
	}
}
