package mount

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func init() {
	actors["crowd"] = actCrowd
}

func TestParkedBytesComeBackFromTheDisk(t *testing.T) {
	k := parking{dir: t.TempDir(), limit: 100_000}
	var all []func()
	for i := range 20 {
		p := bytes.Repeat([]byte{byte(i)}, 30_000)
		kept, free, err := k.keep(p)
		must(t, err)
		clear(p)
		all = append(all, func() {
			if !bytes.Equal(kept, bytes.Repeat([]byte{byte(i)}, 30_000)) {
				t.Errorf("write %d has other bytes", i)
			}
			free()
		})
	}
	if k.heap != 90_000 {
		t.Errorf("%d bytes in the heap, want 90,000", k.heap)
	}
	for _, f := range all {
		f()
	}
	if k.heap != 0 {
		t.Errorf("%d bytes in the heap after all were given back", k.heap)
	}
	if list, err := os.ReadDir(k.dir); err != nil || len(list) > 0 {
		t.Errorf("%d files are left, %v", len(list), err)
	}
}

// actCrowd has THREADS threads write one line of SIZE bytes each to a file DIR/N of their
// own, which are there, and says so before and after.
func actCrowd(args []string) error {
	var threads, size int
	fmt.Sscan(args[1], &threads)
	fmt.Sscan(args[2], &size)
	errs := make([]error, threads)
	var wg sync.WaitGroup
	for i := range threads {
		fd, err := syscall.Open(fmt.Sprintf("%s/%d", args[0], i), syscall.O_WRONLY|syscall.O_APPEND, 0)
		if err != nil {
			return err
		}
		wg.Go(func() {
			line := append(bytes.Repeat([]byte{byte('a' + i%26)}, size-1), '\n')
			n, err := syscall.Write(fd, line)
			for err == syscall.EINTR { // the runtime's own SIGURG met a write that waits
				n, err = syscall.Write(fd, line)
			}
			if n != size || err != nil {
				errs[i] = fmt.Errorf("write %d: %d, %w", i, n, err)
			}
		})
	}
	fmt.Println("going")
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	fmt.Println("done")
	return nil
}

// anonymous is the memory of process pid that no file stands behind.
func anonymous(t testing.TB, pid int) (bytes int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(b), "RssAnon:")
	fmt.Sscan(rest, &bytes)
	return bytes << 10
}

// TestWritesThatWaitTakeNoMoreMemoryThanTheirLimit: each kept its megabyte in the heap, as
// many as there were programs.
func TestWritesThatWaitTakeNoMoreMemoryThanTheirLimit(t *testing.T) {
	r := newRig(t, tinyQueue)
	const crowd, size = 200, 1<<20 - 4096
	for i := range crowd {
		must(t, os.WriteFile(r.path(fmt.Sprint(i)), nil, 0o644))
	}
	fillUp(t, r, "full.log")
	pid := r.readies()[0]
	before := anonymous(t, pid)
	o := startActor(t, "crowd", r.point, fmt.Sprint(crowd), fmt.Sprint(size))
	o.next()
	for limit := 400; ; limit-- { // there is no event for it
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", o.cmd.Process.Pid))
		must(t, err)
		waiting := 0
		for _, th := range threads {
			stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stack", o.cmd.Process.Pid, th.Name()))
			if strings.Contains(string(stack), "request_wait_answer") {
				waiting++
			}
		}
		if waiting >= crowd {
			break
		}
		if limit == 0 {
			t.Fatalf("%d of %d writes wait", waiting, crowd)
		}
		time.Sleep(25 * time.Millisecond)
	}
	if grown := anonymous(t, pid) - before; grown > parkedMemory+64<<20 && !underRace {
		t.Errorf("%d writes of 1 MiB that wait take %d MiB", crowd, grown>>20)
	}
	o.cmd.Process.Kill()
	o.ended() // which fails if they cannot be killed
	r.stop()
}

// TestManyReadsTakeTurns: as many as asked at once had three buffers of a megabyte each.
func TestManyReadsTakeTurns(t *testing.T) {
	r := newRig(t, "readback = \"8MiB\"\n")
	const size = 4 << 20
	want := bytes.Repeat([]byte("0123456789abcde\n"), size/16)
	must(t, os.WriteFile(r.path("f"), want, 0o644))
	pid := r.readies()[0]
	before := anonymous(t, pid)
	var wg sync.WaitGroup
	for i := range 10 * readTurns {
		fd, err := syscall.Open(r.path("f"), syscall.O_RDONLY, 0)
		must(t, err)
		wg.Go(func() {
			defer syscall.Close(fd)
			off := int64(i%4) << 20
			buf := make([]byte, 1<<20)
			for range 5 {
				if n, err := syscall.Pread(fd, buf, off); n != len(buf) || err != nil || !bytes.Equal(buf, want[off:off+1<<20]) {
					t.Errorf("read %d at %d: %d bytes, %v", i, off, n, err)
				}
			}
		})
	}
	wg.Wait()
	if grown := anonymous(t, pid) - before; grown > 64<<20 && !underRace {
		t.Errorf("%d readers at once took %d MiB", 10*readTurns, grown>>20)
	} else {
		t.Logf("%d readers at once took %d MiB", 10*readTurns, grown>>20)
	}
	r.stop()
}
