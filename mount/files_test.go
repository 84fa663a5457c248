package mount

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/record"
)

// appender opens a file for appending.
func appender(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func put(t testing.TB, f *os.File, text string) {
	t.Helper()
	if n, err := f.WriteString(text); n != len(text) || err != nil {
		t.Fatalf("write of %d bytes to %s: %d, %v", len(text), f.Name(), n, err)
	}
}

func content(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Fatalf("%s holds %s, %v; want %s", path, brief(string(got)), err, brief(want))
	}
}

func TestRotationByRenameKeepsTheOpenedPath(t *testing.T) {
	r := newRig(t, "")
	old := appender(t, r.path("app.log"))
	put(t, old, "before\n")
	if err := os.Rename(r.path("app.log"), r.path("app.log.1")); err != nil {
		t.Fatal(err)
	}
	put(t, old, "still here\n")
	fresh := appender(t, r.path("app.log"))
	put(t, fresh, "after\n")
	put(t, old, "late\n")
	content(t, r.path("app.log.1"), "before\nstill here\nlate\n")
	content(t, r.path("app.log"), "after\n")
	old.Close()
	fresh.Close()
	r.stop()
	got := r.delivered()
	// What came before the rename is first. From then on two files have the path, and what the
	// kernel writes to both within a millisecond has no order between them.
	ofOld := strings.Replace(got["app.log"], "after\n", "", 1)
	if len(got) != 1 || len(got["app.log"]) != len(ofOld)+len("after\n") || ofOld != "before\nstill here\nlate\n" || !strings.HasPrefix(got["app.log"], "before\n") {
		t.Fatalf("%q", got)
	}
}

func TestCopytruncateLosesNothing(t *testing.T) {
	r := newRig(t, "")
	f := appender(t, r.path("app.log"))
	var want strings.Builder
	for round := range 20 {
		for i := range 50 {
			line := fmt.Sprintf("round %d line %d\n", round, i)
			want.WriteString(line)
			put(t, f, line)
		}
		if err := os.Truncate(r.path("app.log"), 0); err != nil {
			t.Fatal(err)
		}
		if st, err := f.Stat(); err != nil || st.Size() != 0 {
			t.Fatal(st.Size(), err)
		}
	}
	put(t, f, "end\n")
	content(t, r.path("app.log"), "end\n")
	f.Close()
	r.stop()
	r.wantDelivered("app.log", want.String()+"end\n")
}

func TestTruncatingToALengthKeepsWhatCanBeReadBack(t *testing.T) {
	r := newRig(t, "")
	f := appender(t, r.path("a"))
	put(t, f, "0123456789")
	if err := f.Truncate(4); err != nil {
		t.Fatal(err)
	}
	content(t, r.path("a"), "0123")
	if err := f.Truncate(8); err != nil {
		t.Fatal(err)
	}
	content(t, r.path("a"), "0123\x00\x00\x00\x00")
	put(t, f, "\nnext\n")
	content(t, r.path("a"), "0123\x00\x00\x00\x00\nnext\n")
	f.Close()
	r.stop()
	r.wantDelivered("a", "0123456789\nnext\n") // the hole is skipped
}

func TestAShellRedirectionOverAFile(t *testing.T) {
	r := newRig(t, "")
	sh := func(script string) {
		t.Helper()
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = r.point
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", script, err, out)
		}
	}
	sh("echo first > log; echo second >> log; printf a >> log; printf b >> log; echo >> log")
	content(t, r.path("log"), "first\nsecond\nab\n")
	sh("echo third > log; (echo x; echo y) > log; cat log > copy; cp log log2; dd if=log of=log3 bs=1 2>/dev/null; tee log4 < log >/dev/null")
	content(t, r.path("log"), "x\ny\n")
	content(t, r.path("log3"), "x\ny\n")
	r.stop()
	got := r.delivered()
	if got["log"] != "first\nsecond\nab\nthird\nx\ny\n" {
		t.Fatalf("%q", got["log"])
	}
	for _, name := range []string{"copy", "log2", "log3", "log4"} {
		if got[name] != "x\ny\n" {
			t.Errorf("%s: %q", name, got[name])
		}
	}
}

func TestOverwritingIsCapturedAsItComes(t *testing.T) {
	r := newRig(t, "")
	f, err := os.OpenFile(r.path("a"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	put(t, f, "aaaa\nbbbb\n")
	if _, err := f.WriteAt([]byte("XXXX\n"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("YYYY\nlonger\n"), 5); err != nil { // over the end
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("far\n"), 100); err != nil { // past the end: a hole
		t.Fatal(err)
	}
	content(t, r.path("a"), "XXXX\nYYYY\nlonger\n"+string(make([]byte, 83))+"far\n")
	f.Close()
	r.stop()
	var flagged int
	for _, one := range r.records() {
		if one.Flags&record.Overwrite != 0 {
			flagged++
		}
	}
	if flagged != 2 {
		t.Errorf("%d records are flagged as overwriting, want 2", flagged)
	}
	r.wantDelivered("a", "aaaa\nbbbb\nXXXX\nYYYY\nlonger\nfar\n")
}

func TestOverwriteCanBeRefused(t *testing.T) {
	r := newRig(t, "overwrite = \"refuse\"\n")
	f, err := os.OpenFile(r.path("a"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	put(t, f, "aaaa\n")
	if _, err := f.WriteAt([]byte("X"), 0); !isErrno(err, syscall.EPERM) {
		t.Fatalf("%v, want EPERM", err)
	}
	put(t, f, "bbbb\n")
	content(t, r.path("a"), "aaaa\nbbbb\n")
	f.Close()
	r.stop()
	r.wantDelivered("a", "aaaa\nbbbb\n")
}

func TestUnlinkedAndReplacedFilesStayWhileOpen(t *testing.T) {
	r := newRig(t, "")
	f, err := os.OpenFile(r.path("a"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	g, err := os.OpenFile(r.path("b"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	put(t, f, "a1\n")
	put(t, g, "b1\n")
	if err := os.Remove(r.path("a")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.path("c"), []byte("c\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(r.path("c"), r.path("b")); err != nil {
		t.Fatal(err)
	}
	put(t, f, "a2\n")
	put(t, g, "b2\n")
	for _, one := range []struct {
		f    *os.File
		want string
	}{{f, "a1\na2\n"}, {g, "b1\nb2\n"}} {
		buf := make([]byte, 100)
		n, _ := one.f.ReadAt(buf, 0)
		st, err := one.f.Stat()
		if string(buf[:n]) != one.want || err != nil || st.Sys().(*syscall.Stat_t).Nlink != 0 {
			t.Fatalf("%q, %v, nlink %d", buf[:n], err, st.Sys().(*syscall.Stat_t).Nlink)
		}
		if err := one.f.Truncate(0); err != nil {
			t.Fatal(err)
		}
		put(t, one.f, "z\n")
		one.f.Close()
	}
	content(t, r.path("b"), "c\n")
	r.stop()
	got := r.delivered()
	if got["a"] != "a1\na2\nz\n" || got["b"] != "b1\nb2\nz\n" || got["c"] != "c\n" {
		t.Fatalf("%q", got)
	}
	if names, err := os.ReadDir(r.dir + "/state/mount/spool"); err != nil || len(names) != 1 {
		t.Fatalf("%d spool files are left, want the one that has a name: %v %v", len(names), names, err)
	}
}

func TestReadbackHolesAndBlocks(t *testing.T) {
	r := newRig(t, "readback = \"64KiB\"\n")
	f := appender(t, r.path("a"))
	line := bytes.Repeat([]byte("x"), 1023)
	line = append(line, '\n')
	const lines = 20 << 10
	for range lines {
		put(t, f, string(line))
	}
	f.Close()
	var st unix.Stat_t
	for limit := time.Now().Add(20 * time.Second); ; {
		if err := unix.Stat(r.path("a"), &st); err != nil {
			t.Fatal(err)
		}
		if st.Blocks*512 <= 80<<10 {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("%d bytes on disk of a file that is captured, want at most the readback of 64 KiB and a bit", st.Blocks*512)
		}
		time.Sleep(10 * time.Millisecond) // the file system has no event for it
	}
	if st.Size != lines*1024 {
		t.Fatalf("st_size %d, want %d", st.Size, lines*1024)
	}
	got, err := os.ReadFile(r.path("a"))
	if err != nil || len(got) != lines*1024 {
		t.Fatal(len(got), err)
	}
	if !bytes.Equal(got[len(got)-64<<10:], bytes.Repeat(line, 64)) {
		t.Fatal("the last 64 KiB cannot be read back")
	}
	if !bytes.Equal(got[:1<<20], make([]byte, 1<<20)) {
		t.Fatal("what was punched out does not read as zeros")
	}
	r.stop()
	r.wantDelivered("a", strings.Repeat(string(line), lines))
}

func TestTailFollows(t *testing.T) {
	r := newRig(t, "")
	f := appender(t, r.path("a"))
	put(t, f, "first\n")
	cmd := exec.Command("tail", "-f", "-s", "0.05", "-n", "+1", r.path("a"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	buf := make([]byte, 100)
	for _, want := range []string{"first\n", "second\n", "third\n"} {
		if want != "first\n" {
			put(t, f, want)
		}
		n, err := out.Read(buf)
		if string(buf[:n]) != want || err != nil {
			t.Fatalf("tail says %q, %v; want %q", buf[:n], err, want)
		}
	}
}

func TestFsyncAndSyncWritesAreInTheQueue(t *testing.T) {
	for _, c := range []struct {
		name  string
		extra string
		flags int
		fsync bool
	}{
		{"fsync", "", 0, true},
		{"O_SYNC", "", os.O_SYNC, false},
		{"O_DSYNC", "", syscall.O_DSYNC, false},
		{"durability sync", "[mount.queue]\ndurability = \"sync\"\n", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.extra)
			f, err := os.OpenFile(r.path("a"), os.O_WRONLY|os.O_APPEND|os.O_CREATE|c.flags, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			want := ""
			for i := range 10 {
				line := fmt.Sprintf("line %d\n", i)
				put(t, f, line)
				want += line
			}
			if c.fsync {
				if err := f.Sync(); err != nil {
					t.Fatal(err)
				}
			}
			r.kill() // and no start after it: only what is in the queue counts
			r.wantDelivered("a", want)
		})
	}
}

func TestLocksHoldBetweenSeparateOpens(t *testing.T) {
	r := newRig(t, "")
	a := appender(t, r.path("a"))
	put(t, a, "x\n") // from now on each open gets a node of its own
	b := appender(t, r.path("a"))
	if err := syscall.Flock(int(a.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(b.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != syscall.EWOULDBLOCK {
		t.Fatalf("flock of what another holds: %v", err)
	}
	got := make(chan error, 1)
	go func() { got <- syscall.Flock(int(b.Fd()), syscall.LOCK_SH) }()
	cmd := exec.Command("flock", "-n", r.path("a"), "true")
	if err := cmd.Run(); err == nil {
		t.Fatal("another process has the lock too")
	}
	a.Close()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	posix := syscall.Flock_t{Type: syscall.F_WRLCK, Start: 5, Len: 10}
	if err := syscall.FcntlFlock(b.Fd(), syscall.F_SETLK, &posix); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("python3", "-c", `
import fcntl,sys,os
f=open(sys.argv[1],"r+")
fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,5,0)
try:
    fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB,5,3)
    sys.exit("got it")
except BlockingIOError:
    pass
`, r.path("a")).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	b.Close()
	if err := exec.Command("flock", "-n", r.path("a"), "true").Run(); err != nil {
		t.Fatal("the lock of a closed file stays")
	}
}

func TestAttributesOfARecord(t *testing.T) {
	r := newRig(t, "")
	for _, dir := range []string{r.point, r.dir, filepath.Dir(r.dir)} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	before := time.Now().UnixNano()
	cmd := exec.Command("sh", "-c", "echo $$ > "+r.path("a"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 4321}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	r.stop()
	all := r.records()
	if len(all) != 1 {
		t.Fatalf("%d records", len(all))
	}
	one := all[0]
	if one.UID != 1234 || one.GID != 4321 || fmt.Sprintln(one.PID) != one.data || one.Path != "a" || one.Host != "src-1" || one.Time < before || one.Time > time.Now().UnixNano() {
		t.Fatalf("%+v", one)
	}
}

func isErrno(err error, want syscall.Errno) bool {
	var e syscall.Errno
	for err != nil {
		if x, ok := err.(syscall.Errno); ok {
			e = x
			break
		}
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return false
		}
		err = u.Unwrap()
	}
	return e == want
}

// Opens that look a name up at the same time are told to look again; no program may see that.
func TestManyOpensAtOnceSeeNoError(t *testing.T) {
	r := newRig(t, "")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 200 {
				f, err := os.OpenFile(r.path("many.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
				if err != nil {
					t.Errorf("open %d of writer %d: %v", i, w, err)
					return
				}
				if _, err := fmt.Fprintf(f, "%d %d\n", w, i); err != nil {
					t.Error(err)
				}
				f.Close()
			}
		})
	}
	wg.Wait()
	r.stop()
	if got := strings.Count(r.delivered()["many.log"], "\n"); got != 8*200 {
		t.Fatalf("%d lines were delivered, want %d", got, 8*200)
	}
}

// TestATruncationThatChangesNoLengthLeftTheTimeOfChange: "> stamp" and ftruncate(2) mark a file as
// changed also where it has that length already (POSIX, open(2) and ftruncate(2)); the kernel leaves
// that to the daemon. truncate(2) does not, as on ext4.
func TestATruncationThatChangesNoLengthLeftTheTimeOfChange(t *testing.T) {
	r := newRig(t, "")
	long := time.Unix(1000, 0)
	modified := func(name, text string, change func(f *os.File) error) bool {
		t.Helper()
		f := appender(t, r.path(name))
		if text != "" {
			put(t, f, text)
		}
		must(t, os.Chtimes(r.path(name), long, long))
		must(t, change(f))
		st, err := os.Stat(r.path(name))
		must(t, err)
		if st.Size() != int64(len(text)) {
			t.Errorf("%s has %d bytes, want %d", name, st.Size(), len(text))
		}
		return !st.ModTime().Equal(long)
	}
	if !modified("opened", "", func(*os.File) error { return os.WriteFile(r.path("opened"), nil, 0o644) }) {
		t.Error("O_TRUNC of an empty file left its time")
	}
	if !modified("cut", "text\n", func(f *os.File) error { return f.Truncate(5) }) {
		t.Error("ftruncate to the length that it has left its time")
	}
	if modified("named", "text\n", func(*os.File) error { return os.Truncate(r.path("named"), 5) }) {
		t.Error("truncate to the length that it has changed its time")
	}
}
