package mount

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel makes difficult where it writes by itself (DESIGN.md, section 4), each
// named. What mount/kernel tests is not repeated here.

// TestOpensOfEveryKindMixInAnyOrder: a handle that is not of the kind of the others of its
// inode would be EIO, and two replies reach their openers in no certain order.
func TestOpensOfEveryKindMixInAnyOrder(t *testing.T) {
	r := newRig(t, "")
	kinds := []int{
		os.O_RDONLY, os.O_WRONLY | os.O_APPEND, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND,
		os.O_WRONLY | os.O_APPEND | os.O_SYNC, os.O_RDONLY | syscall.O_DIRECT, os.O_WRONLY | os.O_APPEND | syscall.O_DIRECT,
	}
	must(t, os.WriteFile(r.path("a"), []byte("x\n"), 0o644))
	for _, one := range kinds {
		for _, two := range kinds {
			for _, three := range kinds {
				var fds []int
				for _, flags := range []int{one, two, three} {
					fd, err := unix.Open(r.path("a"), flags|unix.O_CLOEXEC, 0)
					if err != nil {
						t.Fatalf("%x, %x, %x: %v", one, two, three, err)
					}
					fds = append(fds, fd)
				}
				for _, fd := range fds {
					unix.Close(fd)
				}
			}
		}
	}
	var wg sync.WaitGroup
	for _, flags := range kinds {
		wg.Go(func() {
			for range 300 {
				fd, err := unix.Open(r.path("a"), flags|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Errorf("at the same time, %x: %v", flags, err)
					return
				}
				unix.Close(fd)
			}
		})
	}
	wg.Wait()
	r.stop()
}

// TestSendfileOfAFileThatGrows: splicing goes through the page cache even with direct I/O,
// and all opens share one inode: it gave zeros where the file had ended before.
func TestSendfileOfAFileThatGrows(t *testing.T) {
	r := newRig(t, "")
	f := appender(t, r.path("a"))
	var want strings.Builder
	for i := range 50 {
		line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", i*37%500))
		put(t, f, line)
		want.WriteString(line)
		in, err := os.Open(r.path("a"))
		must(t, err)
		pr, pw, err := os.Pipe()
		must(t, err)
		got := make(chan []byte)
		go func() { b, _ := io.ReadAll(pr); got <- b }()
		for {
			n, err := unix.Sendfile(int(pw.Fd()), int(in.Fd()), nil, 1<<20)
			must(t, err)
			if n == 0 {
				break
			}
		}
		pw.Close()
		if b := <-got; string(b) != want.String() {
			t.Fatalf("after line %d sendfile gives %s", i, brief(string(b[max(0, len(b)-100):])))
		}
		in.Close()
	}
	if out, err := exec.Command("cp", r.path("a"), r.path("copy")).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	content(t, r.path("copy"), want.String())
	r.stop()
	r.wantDelivered("copy", want.String())
}

// TestAppendCannotBeTakenAway: a program that clears O_APPEND, or asks for no append with one
// write, still appends: the kernel has opened the spool file with it.
func TestAppendCannotBeTakenAway(t *testing.T) {
	needPassthrough(t)
	r := newRig(t, "")
	f := appender(t, r.path("a"))
	put(t, f, "first\n")
	fl, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	must(t, err)
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, fl&^unix.O_APPEND)
	must(t, err)
	_, err = unix.Seek(int(f.Fd()), 0, io.SeekStart)
	must(t, err)
	put(t, f, "second\n")
	_, err = unix.Pwrite(int(f.Fd()), []byte("third\n"), 0)
	must(t, err)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, fl); err != nil {
		t.Fatal(err)
	}
	const noAppend = 0x20 // RWF_NOAPPEND
	if _, err := unix.Pwritev2(int(f.Fd()), [][]byte{[]byte("fourth\n")}, 0, noAppend); err != nil {
		t.Fatal(err)
	}
	content(t, r.path("a"), "first\nsecond\nthird\nfourth\n")
	r.stop()
	r.wantDelivered("a", "first\nsecond\nthird\nfourth\n")
}

// TestSharedWritableMappings: refused as long as the kernel does not write to the file; beside
// an appender it cannot be, and what is stored into bytes that were captured is not.
func TestSharedWritableMappings(t *testing.T) {
	r := newRig(t, "")
	f, err := os.OpenFile(r.path("a"), os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	put(t, f, strings.Repeat("x", 8191)+"\n")
	shared := func() ([]byte, error) {
		return syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	}
	if _, err := shared(); err != syscall.ENODEV {
		t.Errorf("alone: %v, want ENODEV", err)
	}
	g := appender(t, r.path("a"))
	put(t, g, "beside\n")
	if _, err := shared(); err != syscall.ENODEV {
		t.Errorf("opened before an appender: %v, want ENODEV", err)
	}
	b, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_PRIVATE)
	if err != nil || b[0] != 'x' {
		t.Errorf("private: %v", err)
	}
	f.Close()
	r.stop()
	r.wantDelivered("a", strings.Repeat("x", 8191)+"\nbeside\n")
}

// TestStoresIntoAMappingBesideAnAppenderAreSaid: such a mapping cannot be refused.
func TestStoresIntoAMappingBesideAnAppenderAreSaid(t *testing.T) {
	needPassthrough(t)
	r := newRig(t, "")
	f := appender(t, r.path("a"))
	line := strings.Repeat("x", 1<<20-1) + "\n"
	for range 12 {
		put(t, f, line)
	}
	var st unix.Stat_t
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) { // there is no event for it
		must(t, unix.Stat(r.path("a"), &st))
		if st.Blocks*512 < 9<<20 {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("%d blocks: nothing is punched", st.Blocks)
		}
	}
	open := func() *os.File {
		g, err := os.OpenFile(r.path("a"), os.O_RDWR, 0)
		must(t, err)
		return g
	}
	open().Close()
	if r.logged("shared mapping") {
		t.Error("nobody stored anything")
	}
	g := open()
	b, err := syscall.Mmap(int(g.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	must(t, err)
	b[0] = 'y'
	must(t, syscall.Munmap(b))
	g.Close()
	r.awaitLog("shared mapping")
	f.Close()
	r.stop()
	r.wantDelivered("a", strings.Repeat(line, 12))
}

// TestSizeAndPositionWhileTheKernelWrites: what the daemon says of the size is the spool
// file's, not what it has captured.
func TestSizeAndPositionWhileTheKernelWrites(t *testing.T) {
	r := newRig(t, "")
	f, g := appender(t, r.path("a")), appender(t, r.path("a"))
	size := int64(0)
	for i := range 500 {
		line := strings.Repeat("y", i%50) + "\n"
		put(t, []*os.File{f, g}[i%2], line)
		size += int64(len(line))
		for what, stat := range map[string]func() (os.FileInfo, error){"fstat": f.Stat, "stat": func() (os.FileInfo, error) { return os.Stat(r.path("a")) }} {
			if st, err := stat(); err != nil || st.Size() != size {
				t.Fatalf("%s after %d bytes: %d, %v", what, size, st.Size(), err)
			}
		}
		if at, err := f.Seek(0, io.SeekEnd); err != nil || at != size {
			t.Fatalf("the end after %d bytes: %d, %v", size, at, err)
		}
	}
	r.stop()
}

// TestNamesChangeAfterTheBytesAreInTheQueue: what was written before a rename, a removal, a
// replacement or a truncation is committed before it takes effect.
func TestNamesChangeAfterTheBytesAreInTheQueue(t *testing.T) {
	needPassthrough(t)
	for what, change := range map[string]func(r *rig) error{
		"rename":   func(r *rig) error { return os.Rename(r.path("a"), r.path("a.1")) },
		"unlink":   func(r *rig) error { return os.Remove(r.path("a")) },
		"replace":  func(r *rig) error { return os.Rename(r.path("new"), r.path("a")) },
		"truncate": func(r *rig) error { return os.Truncate(r.path("a"), 0) },
		"O_TRUNC":  func(r *rig) error { return os.WriteFile(r.path("a"), nil, 0) },
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, "")
			must(t, os.WriteFile(r.path("new"), nil, 0o644))
			f := appender(t, r.path("a"))
			var want strings.Builder
			for i := range 2000 {
				line := fmt.Sprintf("line %d\n", i)
				put(t, f, line)
				want.WriteString(line)
			}
			must(t, change(r))
			r.kill() // and no start after it: only what is in the queue counts
			r.wantDelivered("a", want.String())
		})
	}
}

// TestTruncationUnderKernelWritersLosesNothing: with ATOMIC_O_TRUNC, or with a truncation that
// the kernel does not wait for, lines between the drain and the cut are lost.
func TestTruncationUnderKernelWritersLosesNothing(t *testing.T) {
	r := newRig(t, "")
	names := []string{"alpha", "beta"}
	var stops []func() int
	for _, name := range names {
		_, stop := startCounted(t, r.path("a.log"), name, os.O_WRONLY|os.O_APPEND)
		stops = append(stops, stop)
	}
	for i := range 40 {
		switch i % 3 {
		case 0:
			must(t, os.Truncate(r.path("a.log"), 0))
		case 1:
			must(t, os.WriteFile(r.path("a.log"), nil, 0)) // O_TRUNC
		case 2: // copytruncate, as logrotate does it
			f, err := os.OpenFile(r.path("a.log"), os.O_RDWR, 0)
			must(t, err)
			must(t, f.Truncate(0))
			must(t, f.Close())
		}
	}
	want := map[string]int{}
	for i, stop := range stops {
		want[names[i]] = stop()
	}
	r.stop()
	countedLines(t, r.delivered()["a.log"], want)
}

// TestWritesOfAMegabyteAreWhole: one write(2) of up to 1 MiB less a page is one request, and
// appends of several processes to one file do not mix in it, as on ext4; whoever the daemon
// writes for.
func TestWritesOfAMegabyteAreWhole(t *testing.T) {
	for _, c := range []struct {
		name, extra string
		flags       int
	}{{"write", perWrite, os.O_WRONLY}, {"open", "", os.O_RDWR}} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.extra)
			const size = 1<<20 - 4096
			var wg sync.WaitGroup
			for w := range 3 {
				wg.Go(func() {
					f, err := os.OpenFile(r.path("a"), c.flags|os.O_APPEND|os.O_CREATE, 0o644)
					if err != nil {
						t.Error(err)
						return
					}
					defer f.Close()
					b := append(bytes.Repeat([]byte{byte('a' + w)}, size-1), '\n')
					for range 5 {
						if n, err := f.Write(b); n != size || err != nil {
							t.Error(n, err)
						}
					}
				})
			}
			wg.Wait()
			got, err := os.ReadFile(r.path("a"))
			if err != nil || len(got) != 15*size {
				t.Fatal(len(got), err)
			}
			eventually(t, "15 writes are taken in", func() bool { return r.counter("written_bytes") == 15*size })
			if n := r.counter("writes"); n != 15 {
				t.Errorf("%d requests, want 15", n)
			}
			r.stop()
			text := r.delivered()["a"]
			for i := range 15 {
				block := text[i*size : (i+1)*size]
				if block != strings.Repeat(block[:1], size-1)+"\n" {
					t.Fatalf("block %d is mixed", i)
				}
			}
		})
	}
}

// counter is one of the role's status.
func (r *rig) counter(name string) uint64 {
	r.t.Helper()
	s, err := r.status()
	must(r.t, err)
	for _, c := range s.Counters {
		if c.Name == name {
			return c.Value
		}
	}
	r.t.Fatalf("there is no counter %q", name)
	return 0
}

// TestFsyncOfAKernelWrittenFile: its bytes are in the queue when it returns.
func TestFsyncOfAKernelWrittenFile(t *testing.T) {
	r := newRig(t, "")
	f := appender(t, r.path("a"))
	var want strings.Builder
	for i := range 5000 {
		line := fmt.Sprintf("line %d\n", i)
		put(t, f, line)
		want.WriteString(line)
	}
	must(t, f.Sync())
	r.kill()
	r.wantDelivered("a", want.String())
}

// TestFsyncAtAFullQueueKeepsNobodyWaiting: the kernel holds the inode's lock over an fsync, so
// that one that waited for room made every other writer of the file unkillable. The bytes are
// durable in the spool instead.
func TestFsyncAtAFullQueueKeepsNobodyWaiting(t *testing.T) {
	needPassthrough(t)
	r := newRig(t, "[[mount.rule]]\npath = \"full.log\"\nattribution = \"write\"\n[mount.queue]\nmax_bytes = \"1MiB\"\n")
	f := appender(t, r.path("a"))
	put(t, f, "first\n")
	fillUp(t, r, "full.log")
	put(t, f, "second\n")
	begun := time.Now()
	must(t, f.Sync())
	if d := time.Since(begun); d > 5*time.Second {
		t.Errorf("fsync took %v", d)
	}
	begun = time.Now()
	must(t, f.Truncate(0))
	must(t, os.Rename(r.path("a"), r.path("b")))
	must(t, os.Remove(r.path("b")))
	if d := time.Since(begun); d > 10*time.Second {
		t.Errorf("truncate, rename and unlink took %v", d)
	}
	f.Close()
	r.kill()
	r.moreRoom()
	r.wantDelivered("a", "first\nsecond\n")
}

// TestADaemonServedWriteAtAFullQueueGivesWay: with one node a write that the daemon lets wait
// would keep the file's other users from dying.
func TestADaemonServedWriteAtAFullQueueGivesWay(t *testing.T) {
	needPassthrough(t)
	r := newRig(t, "[[mount.rule]]\npath = \"full.log\"\nattribution = \"write\"\n[mount.queue]\nmax_bytes = \"1MiB\"\n")
	fillUp(t, r, "full.log")
	var ws []*output
	for range 3 {
		o, _ := startCounted(t, r.path("a"), "w", os.O_RDWR|os.O_APPEND)
		ws = append(ws, o)
	}
	for _, o := range ws {
		o.cmd.Process.Kill()
		if d := o.ended(); d > 4*time.Second { // each of the others may have its turn
			t.Errorf("it took %v to die", d)
		}
	}
	r.stop()
}

// TestTenThousandOpenFiles: each is written to by the kernel while all are open.
func TestTenThousandOpenFiles(t *testing.T) {
	needPassthrough(t)
	var lim unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &lim))
	n := soak(2000, 10_000) // as e2e does with the built binary
	if lim.Max < uint64(n+n/10) {
		t.Skipf("at most %d descriptors", lim.Max)
	}
	old := lim
	lim.Cur = lim.Max
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &lim))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	r := newHeldRig(t, "", "")
	fds := make([]int, n)
	for i := range fds {
		var err error
		fds[i], err = unix.Open(r.path(fmt.Sprintf("f%d", i)), unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
		must(t, err)
	}
	write := func() {
		for i, fd := range fds {
			if _, err := unix.Write(fd, fmt.Appendf(nil, "line of %d\n", i)); err != nil {
				t.Fatal(i, err)
			}
		}
	}
	write()
	r.killWorker()
	write()
	for _, fd := range fds {
		unix.Close(fd)
	}
	nothingOpen(t, r)
	r.stop()
	got := r.delivered()
	for i := range fds {
		line := fmt.Sprintf("line of %d\n", i)
		if name := fmt.Sprintf("f%d", i); got[name] != line+line {
			t.Fatalf("%s: %q", name, got[name])
		}
	}
	if names, err := os.ReadDir(filepath.Join(r.dir, "state/mount/spool")); err != nil || len(names) != n {
		t.Fatal(len(names), err)
	}
}
