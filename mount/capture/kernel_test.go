package capture

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

// kernelWriter writes to a file of the mount as the kernel does for a program that opened
// it with passthrough: it appends to the spool file, and nobody else hears of it.
type kernelWriter struct {
	h  *spool.Handle
	fd int
}

// open2 opens path as the mount does, for the kernel to write.
func (r *rig) kernel(path string, pid uint32) *kernelWriter {
	r.Helper()
	f := r.file(path)
	m := r.meta()
	m.PID = pid
	h, err := r.s.OpenHandle(f, path, spool.Kernel, m)
	r.must(err)
	return &kernelWriter{h, r.backing(f.Number())}
}

// shared opens path for the daemon to write, in open mode.
func (r *rig) shared(path string, pid uint32) *spool.Handle {
	r.Helper()
	m := r.meta()
	m.PID = pid
	h, err := r.s.OpenHandle(r.file(path), path, spool.Shared, m)
	r.must(err)
	return h
}

func (r *rig) backing(n spool.Number) int {
	r.Helper()
	fd, err := unix.Open(filepath.Join(r.dir, "spool", n.String()), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	r.must(err)
	return fd
}

func (k *kernelWriter) write(r *rig, data string) {
	r.Helper()
	if n, err := unix.Write(k.fd, []byte(data)); n != len(data) || err != nil {
		r.Fatalf("write(2) of %d: %d, %v", len(data), n, err)
	}
}

// close is the program's last close, and the RELEASE that follows.
func (k *kernelWriter) close(r *rig) {
	unix.Close(k.fd)
	k.h.End(r.meta())
}

func TestKernelBytesAreCaptured(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	k := r.kernel("a", 11)
	k.write(r, "one\ntwo\nhalf")
	r.drain()
	k.write(r, " way\n")
	r.waitFor("the line without a drain", func() bool { return strings.HasSuffix(r.output("a"), "way\n") })
	k.write(r, "end")
	k.close(r)
	r.drain()
	o := record.Opener
	r.wantRecords("a", flag("one\ntwo\n", o), flag("half way\n", o), flag("end", o|record.Unterminated))
	if x := r.records()[0]; x.pid != 11 {
		t.Errorf("%v, want pid 11", x)
	}
	r.waitFor("the store to hear of it", func() bool { return r.s.Uncaptured() == 0 })
	r.restart()
	r.want("a", "one\ntwo\nhalf way\nend")
}

// TestKernelAndDaemonWriteOneFile: what the daemon writes has its own pid, holes are told
// from the kernel's bytes, and all share their lines.
func TestKernelAndDaemonWriteOneFile(t *testing.T) {
	for _, stop := range []bool{false, true} {
		t.Run(fmt.Sprint("kill ", stop), func(t *testing.T) {
			r := newRig(t, Options{})
			r.start()
			if stop {
				r.holdBack()
			}
			k := r.kernel("a", 11)
			d := r.shared("a", 12)
			k.write(r, "k1\nk2")
			r.write(d, "d2\nd3\n")
			k.write(r, "k4\n")
			_, err := d.Write([]byte("hole\n"), d.Size()+5000, false, r.meta())
			r.must(err)
			k.write(r, "k5\n")
			if stop {
				unix.Close(k.fd)
				r.restart()
			} else {
				k.close(r)
				d.End(r.meta())
				r.drain()
			}
			s := record.Opener
			r.wantRecords("a", flag("k1\n", s), flag("k2d2\n", s), "d3\n|0", flag("k4\n", s), "hole\n|0", flag("k5\n", s))
			if n := r.c.Stats(); n.Holes != 1 || n.HoleBytes != 5000 {
				t.Errorf("%d holes of %d bytes, want 1 of 5000", n.Holes, n.HoleBytes)
			}
		})
	}
}

func TestOpenersAndTheirFlags(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	a := r.kernel("f", 1)
	a.write(r, "1 alone\n")
	b := r.kernel("f", 2)
	b.write(r, "1 and 2\n")
	c := r.kernel("f", 2)
	a.close(r)
	c.write(r, "2 twice\n")
	b.close(r)
	c.close(r)
	r.drain()
	var got []string
	for _, x := range r.records() {
		got = append(got, fmt.Sprintf("%s pid %d %v", strings.TrimSpace(x.data), x.pid, x.flags&record.Several != 0))
	}
	want := "1 alone pid 1 false|1 and 2 pid 2 true|2 twice pid 2 false"
	if g := strings.Join(got, "|"); g != want {
		t.Errorf("%s\nwant %s", g, want)
	}
	if _, err := os.Stat(r.spoolFile(a.h.Number())); err != nil {
		t.Error(err)
	}
}

// TestADrainHasAllThatWasWrittenBefore: also where that is more than one turn of it.
func TestADrainHasAllThatWasWrittenBefore(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	k := r.kernel("a", 11)
	defer unix.Close(k.fd)
	block := strings.Repeat("0123456789abcde\n", 1<<19) // 8 MiB
	for i := range 3 {
		k.write(r, block)
		r.must(r.c.Drain(r.ctx(), k.h.Number()))
		if n := len(r.output("a")); n != (i+1)*len(block) {
			t.Fatalf("%d bytes after drain %d, want %d", n, i+1, (i+1)*len(block))
		}
	}
}
