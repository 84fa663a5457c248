package mount

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/failpoint"
)

func init() { actors["blocks"] = actBlocks }

// actBlocks appends COUNT blocks of whole lines of its NAME to PATH, each one write(2) of
// about SIZE bytes.
func actBlocks(args []string) error {
	size, _ := strconv.Atoi(args[2])
	count, _ := strconv.Atoi(args[3])
	f, err := syscall.Open(args[0], syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT, 0o644)
	if err != nil {
		return err
	}
	line := 0
	for range count {
		var b []byte
		for len(b) < size {
			b = fmt.Appendf(b, "%s %d %s\n", args[1], line, strings.Repeat(args[1][:1], line%300))
			line++
		}
		for len(b) > 0 {
			n, err := syscall.Write(f, b)
			if err != nil {
				return err
			}
			b = b[n:]
		}
	}
	fmt.Println("lines", line)
	return nil
}

// TestLargeWritesOfSeveralWritersKeepTheirLinesWhole: a write(2) above 128 KiB comes in
// several requests, and those of separate opens may mix in the file, as they never do on
// ext4; what is delivered is whole lines all the same.
func TestLargeWritesOfSeveralWritersKeepTheirLinesWhole(t *testing.T) {
	r := newRig(t, "")
	var ws []*output
	names := []string{"alpha", "beta", "gamma", "delta"}
	for _, name := range names {
		ws = append(ws, startActor(t, "blocks", r.path("a.log"), name, "700000", "10"))
	}
	want := map[string]int{}
	for i, w := range ws {
		var n int
		fmt.Sscanf(w.next(), "lines %d", &n)
		want[names[i]] = n
		w.ended()
	}
	r.stop()
	wholeBlocks(t, r.delivered()["a.log"], want)
}

// wholeBlocks checks that text has the lines that actBlocks wrote, whole, once and in
// the order of each writer.
func wholeBlocks(t *testing.T, text string, want map[string]int) {
	t.Helper()
	next := map[string]int{}
	for line := range strings.Lines(text) {
		name, _, _ := strings.Cut(line, " ")
		if line != fmt.Sprintf("%s %d %s\n", name, next[name], strings.Repeat(name[:1], next[name]%300)) {
			t.Fatalf("%s, want number %d of %q", brief(line), next[name], name)
		}
		next[name]++
	}
	for name, n := range want {
		if next[name] != n {
			t.Errorf("%d lines of %s, want %d", next[name], name, n)
		}
	}
}

// TestTruncationUnderWritersLosesNothing: every line that was accepted before a
// truncation is delivered, and none twice.
func TestTruncationUnderWritersLosesNothing(t *testing.T) {
	r := newRig(t, "")
	names := []string{"alpha", "beta", "gamma", "delta"}
	var ws []*output
	for _, name := range names {
		ws = append(ws, startActor(t, "blocks", r.path("a.log"), name, "100", "5000"))
	}
	done := make(chan struct{})
	want := map[string]int{}
	go func() {
		defer close(done)
		for i, w := range ws {
			var n int
			fmt.Sscanf(<-w.line, "lines %d", &n)
			want[names[i]] = n
		}
	}()
	cuts := 0
	for running := true; running; cuts++ {
		if err := os.Truncate(r.path("a.log"), 0); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		select {
		case <-done:
			running = false
		default:
		}
	}
	if cuts < 5 {
		t.Fatalf("only %d truncations", cuts)
	}
	r.stop()
	wholeBlocks(t, r.delivered()["a.log"], want)
}

// TestASignalDoesNotDenyASyncWrite: the bytes are accepted when the signal comes, so the
// write returns them, and only after the commit; SIGKILL ends the writer at once.
func TestASignalDoesNotDenyASyncWrite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := newRigStopped(t, "[mount.queue]\ndurability = \"sync\"\n")
	r.env = []string{failpoint.Env + "=capture/seal=pause@2"}
	r.start()
	a, b := startActor(t, "catch", r.path("a.log")), startActor(t, "catch", r.path("b.log"))
	var tids [2]int
	for i, o := range []*output{a, b} {
		fmt.Sscanf(o.next(), "tid %d", &tids[i])
		inWrite(t, tids[i])
		awaitSize(t, r.path(string("ab"[i])+".log"), int64(len("interrupted\n")))
	}
	if err := syscall.Tgkill(a.cmd.Process.Pid, tids[0], syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	b.cmd.Process.Kill()
	if d := b.ended(); d > time.Second {
		t.Errorf("a writer that waits for the disk took %v to die", d)
	}
	select {
	case l := <-a.line:
		t.Fatalf("a write that is not on disk returned: %s", l)
	default:
	}
	a.cmd.Process.Kill()
	a.ended()
	r.kill()
	r.env = nil
	r.start()
	r.stop()
	got := r.delivered()
	if got["a.log"] != "interrupted\n" || got["b.log"] != "interrupted\n" {
		t.Fatalf("%q", got)
	}
}

// awaitSize waits until a file has size bytes.
func awaitSize(t *testing.T, path string, size int64) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); ; {
		st, err := os.Stat(path)
		if err == nil && st.Size() == size {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s: %v, %v; want %d bytes", path, st, err, size)
		}
		time.Sleep(time.Millisecond) // the file system has no event for it
	}
}
