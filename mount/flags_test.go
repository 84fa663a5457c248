package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// flagCases are ways to open a file for writing.
var flagCases = []struct {
	name  string
	flags int
	end   bool // seeks to the end first
}{
	{"append", os.O_WRONLY | os.O_APPEND, false},
	{"append nonblock", os.O_WRONLY | os.O_APPEND | syscall.O_NONBLOCK, false},
	{"append noatime cloexec noctty", os.O_WRONLY | os.O_APPEND | syscall.O_NOATIME | syscall.O_NOCTTY | syscall.O_NOFOLLOW, false},
	{"append trunc", os.O_WRONLY | os.O_APPEND | os.O_TRUNC, false},
	{"append sync", os.O_WRONLY | os.O_APPEND | os.O_SYNC, false},
	{"append dsync", os.O_WRONLY | os.O_APPEND | syscall.O_DSYNC, false},
	{"rdwr append", os.O_RDWR | os.O_APPEND, false},
	{"rdwr append trunc", os.O_RDWR | os.O_APPEND | os.O_TRUNC, false},
	{"wronly", os.O_WRONLY, false},
	{"wronly at the end", os.O_WRONLY, true},
	{"wronly trunc", os.O_WRONLY | os.O_TRUNC, false},
	{"rdwr", os.O_RDWR, false},
	{"rdwr at the end", os.O_RDWR, true},
	{"rdwr trunc", os.O_RDWR | os.O_TRUNC, false},
}

// prog is a program run below dir. What each call gives goes to out; what was accepted of
// each path, to wrote.
type prog struct {
	t     *testing.T
	dir   string
	out   []string
	wrote map[string]string
	f     *os.File
	fd    int
	path  string // as it was opened
	now   string // where its name is
	n     int
}

func (p *prog) say(what string, v ...any) {
	for i := range v {
		if err, ok := v[i].(error); ok {
			var errno syscall.Errno
			if errors.As(err, &errno) {
				v[i] = errno.Error()
			} else if errors.Is(err, io.EOF) {
				v[i] = "EOF"
			}
		}
	}
	p.out = append(p.out, p.path+" "+what+": "+fmt.Sprint(v...))
}

func (p *prog) full(name string) string { return filepath.Join(p.dir, name) }

// line is the next line of the program, no two of them equal.
func (p *prog) line() []byte {
	p.n++
	return fmt.Appendf(nil, "%s %d %s\n", p.path, p.n, strings.Repeat("x", p.n*7%90))
}

func (p *prog) accept(b []byte, n int) { p.wrote[p.path] += string(b[:max(n, 0)]) }

func (p *prog) write(what string, fn func(b []byte) (int, error)) {
	b := p.line()
	n, err := fn(b)
	p.accept(b, n)
	p.say(what, n, err)
}

// where says where the descriptor is, and how long its file.
func (p *prog) where() {
	at, err := unix.Seek(p.fd, 0, io.SeekCurrent)
	p.say("position", at, err)
	var st unix.Stat_t
	err = unix.Fstat(p.fd, &st)
	p.say("size", st.Size, st.Nlink, err)
}

var flagOps = []struct {
	name string
	do   func(p *prog)
}{
	{"write", func(p *prog) {
		for range 3 {
			p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
			p.where()
		}
	}},
	{"dup", func(p *prog) {
		fd, err := unix.Dup(p.fd)
		p.say("dup", err)
		p.write("write", func(b []byte) (int, error) { return unix.Write(fd, b) })
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
		p.say("close", unix.Close(fd))
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
		p.where()
	}},
	{"children share it", func(p *prog) {
		for range 2 {
			b := p.line()
			cmd := exec.Command("sh", "-c", `printf "%s" "$1" >&3`, "sh", string(b))
			cmd.ExtraFiles = []*os.File{p.f}
			err := cmd.Run()
			if err == nil {
				p.accept(b, len(b))
			}
			p.say("child", err)
			p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
		}
		p.where()
	}},
	{"pwrite", func(p *prog) {
		p.write("pwrite 0", func(b []byte) (int, error) { return unix.Pwrite(p.fd, b, 0) })
		p.where()
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
	}},
	{"pwrite over the end", func(p *prog) {
		var st unix.Stat_t
		p.say("fstat", unix.Fstat(p.fd, &st), st.Size)
		p.write("pwrite", func(b []byte) (int, error) { return unix.Pwrite(p.fd, b, max(0, st.Size-3)) })
		p.where()
	}},
	{"pwrite behind the end", func(p *prog) {
		p.write("pwrite", func(b []byte) (int, error) { return unix.Pwrite(p.fd, b, 5000) })
		p.where()
	}},
	{"writev", func(p *prog) {
		b := p.line()
		n, err := unix.Writev(p.fd, [][]byte{b[:5], b[5:9], b[9:]})
		p.accept(b, n)
		p.say("writev", n, err)
		p.where()
	}},
	{"pwritev2 append", func(p *prog) {
		p.write("pwritev2", func(b []byte) (int, error) { return unix.Pwritev2(p.fd, [][]byte{b}, -1, unix.RWF_APPEND) })
		p.where()
	}},
	{"ftruncate", func(p *prog) {
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
		for _, size := range []int64{10, 0, 300, 20} {
			p.say("ftruncate", size, unix.Ftruncate(p.fd, size))
			p.where()
		}
		p.say("ftruncate to where it is", unix.Ftruncate(p.fd, 20))
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
		p.where()
	}},
	{"rename while open", func(p *prog) {
		p.say("rename", os.Rename(p.full(p.now), p.full(p.now+".1")))
		p.now += ".1"
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
		p.where()
	}},
	{"replaced while open", func(p *prog) {
		p.say("other", os.WriteFile(p.full(p.now+".new"), nil, 0o644))
		p.say("rename over", os.Rename(p.full(p.now+".new"), p.full(p.now)))
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
		p.where()
	}},
	{"unlink while open", func(p *prog) {
		p.say("unlink", os.Remove(p.full(p.now)))
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
		p.say("ftruncate", unix.Ftruncate(p.fd, 0))
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
		p.where()
	}},
	{"copytruncate", func(p *prog) {
		for range 3 {
			p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
			data, err := os.ReadFile(p.full(p.now))
			p.say("copy", len(data), err)
			fd, err := unix.Open(p.full(p.now), unix.O_RDWR, 0) // as logrotate does
			p.say("open", err)
			p.say("truncate", unix.Ftruncate(fd, 0))
			p.say("close", unix.Close(fd))
		}
		p.where()
	}},
	{"another process appends", func(p *prog) {
		for range 2 {
			p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
			p.write("other", func(b []byte) (int, error) {
				return len(b), exec.Command("sh", "-c", `printf "%s" "$1" >> "$2"`, "sh", string(b), p.full(p.now)).Run()
			})
		}
	}},
	{"read", func(p *prog) {
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
		buf := make([]byte, 100)
		n, err := unix.Pread(p.fd, buf, 0)
		p.say("pread", n, err, string(buf[:max(n, 0)]))
		at, err := unix.Seek(p.fd, 3, io.SeekStart)
		p.say("seek", at, err)
		n, err = unix.Read(p.fd, buf)
		p.say("read", n, err)
		at, err = unix.Seek(p.fd, 0, io.SeekEnd)
		p.say("seek to the end", at, err)
	}},
	{"fsync", func(p *prog) {
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
		p.say("fsync", unix.Fsync(p.fd))
		p.say("fdatasync", unix.Fdatasync(p.fd))
	}},
	{"append taken away", func(p *prog) {
		fl, err := unix.FcntlInt(uintptr(p.fd), unix.F_GETFL, 0)
		p.say("flags", fl&(unix.O_ACCMODE|unix.O_APPEND), err)
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
	}},
	{"fallocate", func(p *prog) {
		p.say("fallocate", unix.Fallocate(p.fd, 0, 0, 200))
		p.where()
	}},
	{"empty", func(p *prog) {
		n, err := unix.Write(p.fd, nil)
		p.say("write", n, err)
		p.say("close", p.f.Close())
		p.f, err = os.OpenFile(p.full(p.now), unix.O_WRONLY|unix.O_APPEND, 0)
		p.say("open", err)
		p.fd = int(p.f.Fd())
		p.write("write", func(b []byte) (int, error) { return unix.Write(p.fd, b) })
	}},
}

// matrix runs every way to open with every operation, each on a file of its own, that has
// content or not.
func matrix(t *testing.T, dir string) *prog {
	p := &prog{t: t, dir: dir, wrote: map[string]string{}}
	for i, fl := range flagCases {
		for j, op := range flagOps {
			for _, before := range []string{"", "before"} {
				p.path = fmt.Sprintf("f%d-%d%s", i, j, before)
				p.now = p.path
				if before != "" {
					b := p.line()
					must(t, os.WriteFile(p.full(p.path), b, 0o644))
					p.accept(b, len(b))
				}
				p.run(fl.flags, fl.end, op.do)
				data, err := os.ReadFile(p.full(p.now))
				p.say(fmt.Sprintf("content after %s, %s", fl.name, op.name), string(data), err)
			}
		}
	}
	return p
}

func (p *prog) run(flags int, end bool, do func(p *prog)) {
	fd, err := unix.Open(p.full(p.path), flags|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	p.say("open", err)
	if err != nil {
		return
	}
	p.fd, p.f = fd, os.NewFile(uintptr(fd), p.path)
	if end {
		_, err := unix.Seek(fd, 0, io.SeekEnd)
		p.say("seek", err)
	}
	do(p)
	p.say("close", p.f.Close())
}

// withoutPositions leaves out where an O_APPEND descriptor says it is after others have
// changed the file: with a node for each open the kernel does not know (docs/architecture.md,
// "The FUSE adapter").
func withoutPositions(out []string) (kept []string) {
	shared := map[string]bool{}
	for i, op := range flagOps {
		shared[fmt.Sprint(i)] = op.name == "copytruncate" || op.name == "another process appends"
	}
	for _, line := range out {
		_, rest, _ := strings.Cut(line, "-")
		op, what, _ := strings.Cut(rest, " ")
		if !shared[strings.TrimSuffix(op, "before")] || !strings.HasPrefix(what, "position") {
			kept = append(kept, line)
		}
	}
	return kept
}

// TestEveryWayToOpenAndWriteIsAsOnExt4: a program that does the same on ext4 sees the same,
// and everything that was accepted is delivered, whichever way the bytes went.
func TestEveryWayToOpenAndWriteIsAsOnExt4(t *testing.T) {
	t.Parallel()
	want := matrix(t, t.TempDir())
	for _, mode := range []struct{ name, extra string }{{"open", ""}, {"write", perWrite}} {
		t.Run(mode.name, func(t *testing.T) {
			if mode.extra != "" && os.Getenv(envCapture) == "daemon" {
				t.Skip("the same as the other")
			}
			t.Parallel()
			r := newRig(t, mode.extra)
			got := matrix(t, r.point)
			here, there := got.out, want.out
			if mode.extra != "" || os.Getenv(envCapture) == "daemon" {
				here, there = withoutPositions(here), withoutPositions(there)
			}
			compare(t, "ftfuse and ext4", here, there)
			r.stop()
			delivered := r.delivered()
			for path, text := range want.wrote {
				if delivered[path] != text {
					t.Errorf("captured of %s: %s\nwant %s", path, brief(delivered[path]), brief(text))
				}
			}
		})
	}
}
