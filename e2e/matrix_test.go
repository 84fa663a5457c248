package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ftfuse/bench/rig"
)

// subject is a program with one open file: it notes what each call returned, and which bytes
// were accepted, in order. The same one runs on the mount and on ext4.
type subject struct {
	path   string
	fd     int
	stream []byte   // all that write(2) and its like accepted
	said   []string // what each call returned
}

func (s *subject) say(call string, n int, err error) {
	s.said = append(s.said, fmt.Sprintf("%s: %d, %v", call, n, err))
}

// took notes the outcome of a call that writes b.
func (s *subject) took(call string, b []byte, n int, err error) {
	s.stream = append(s.stream, b[:max(n, 0)]...)
	s.say(call, n, err)
}

func (s *subject) write(text string) { s.writeTo(s.fd, text) }

func (s *subject) writeTo(fd int, text string) {
	n, err := unix.Write(fd, []byte(text))
	s.took("write", []byte(text), n, err)
}

func (s *subject) pwrite(text string, off int64) {
	n, err := unix.Pwrite(s.fd, []byte(text), off)
	s.took("pwrite", []byte(text), n, err)
}

func (s *subject) size() {
	var st unix.Stat_t
	err := unix.Fstat(s.fd, &st)
	s.say("size", int(st.Size), err)
}

func (s *subject) open(flags int) int {
	fd, err := unix.Open(s.path, flags|unix.O_CLOEXEC, 0o644)
	s.say("open", min(fd, 0), err)
	return fd
}

// operation is what a subject does once its file is open.
type operation struct {
	run   func(*subject)
	loose string // why what it returns, and what the file then holds, need not be as on ext4
}

var operations = map[string]operation{
	"write":    {run: func(s *subject) { s.write("one\n"); s.write("two\n"); s.size(); s.write("three\n") }},
	"pieces":   {run: func(s *subject) { s.write("a "); s.write("line in "); s.write("pieces\n") }},
	"nothing":  {run: func(s *subject) { s.write(""); s.size() }},
	"big":      {run: func(s *subject) { s.write(strings.Repeat("0123456789abcde\n", 2000)) }},
	"mebibyte": {run: func(s *subject) { s.write(strings.Repeat("0123456789abcde\n", 1<<16)) }, loose: "longer than what can be read back"},
	"writev": {run: func(s *subject) {
		n, err := unix.Writev(s.fd, [][]byte{[]byte("part one, "), []byte("part two\n")})
		s.took("writev", []byte("part one, part two\n"), n, err)
	}},
	"pwrite":     {run: func(s *subject) { s.pwrite("OVER\n", 0); s.size(); s.write("behind\n") }},
	"pwrite-end": {run: func(s *subject) { s.pwrite("at the end\n", 11); s.size() }},
	"hole":       {run: func(s *subject) { s.pwrite("far\n", 5000); s.size() }},
	"seek":       {run: seek},
	"truncate": {run: func(s *subject) {
		s.write("x\n")
		s.say("ftruncate", 0, unix.Ftruncate(s.fd, 0))
		s.size()
		s.write("y\n")
		s.size()
	}},
	"cut": {run: func(s *subject) {
		s.say("ftruncate", 0, unix.Ftruncate(s.fd, 5))
		s.size()
		s.write("after\n")
		s.size()
	}},
	"grow": {run: func(s *subject) {
		s.say("ftruncate", 0, unix.Ftruncate(s.fd, 3000))
		s.size()
		s.write("end\n")
		s.size()
	}},
	"truncated": {run: func(s *subject) {
		s.write("x\n")
		s.say("truncate", 0, unix.Truncate(s.path, 0))
		s.write("y\n")
		s.size()
	}},
	"sync": {run: func(s *subject) {
		s.write("x\n")
		s.say("fsync", 0, unix.Fsync(s.fd))
		s.say("fdatasync", 0, unix.Fdatasync(s.fd))
	}},
	"read":       {run: func(s *subject) { s.write("abc\n"); s.read(); s.write("def\n"); s.read() }},
	"dup":        {run: dup},
	"append-off": {run: setAppend(0), loose: "append is sticky where the kernel writes"},
	"append-on":  {run: setAppend(unix.O_APPEND)},
	"rename": {run: func(s *subject) {
		s.say("rename", 0, unix.Rename(s.path, s.path+".moved"))
		s.path += ".moved"
		s.write("x\n")
	}},
	"unlink":       {run: func(s *subject) { s.write("x\n"); s.say("unlink", 0, unix.Unlink(s.path)); s.write("y\n"); s.size() }},
	"replaced":     {run: replaced},
	"second":       {run: second(unix.O_WRONLY | unix.O_APPEND)},
	"second-rdwr":  {run: second(unix.O_RDWR)},
	"second-trunc": {run: second(unix.O_WRONLY | unix.O_TRUNC)},
	"reader":       {run: second(unix.O_RDONLY)},
	"mode": {run: func(s *subject) {
		s.say("fchmod", 0, unix.Fchmod(s.fd, 0o600))
		s.say("fchown", 0, unix.Fchown(s.fd, 33, 34))
		s.write("x\n")
	}},
	"sendfile":  {run: sendfile},
	"splice":    {run: splice},
	"mmap":      {run: mapped, loose: "a shared writable mapping is refused"},
	"fallocate": {run: func(s *subject) { s.say("fallocate", 0, unix.Fallocate(s.fd, 0, 0, 100)); s.write("x\n") }, loose: "may be refused"},
}

func seek(s *subject) {
	s.write("abc\n")
	for _, whence := range []int{unix.SEEK_SET, unix.SEEK_CUR, unix.SEEK_END} {
		n, err := unix.Seek(s.fd, 0, whence)
		s.say("lseek", int(n), err)
	}
	n, err := unix.Seek(s.fd, 2, unix.SEEK_SET)
	s.say("lseek", int(n), err)
	s.write("sought\n")
}

func (s *subject) read() {
	b := make([]byte, 200)
	n, err := unix.Pread(s.fd, b, 0)
	s.say(fmt.Sprintf("pread %q", b[:max(n, 0)]), n, err)
}

func dup(s *subject) {
	fd, err := unix.Dup(s.fd)
	s.say("dup", 0, err)
	s.write("first\n")
	s.say("close", 0, unix.Close(s.fd))
	s.fd = fd
	s.write("second\n")
}

func setAppend(flag int) func(*subject) {
	return func(s *subject) {
		flags, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFL, 0)
		s.say("F_GETFL", flags&(unix.O_ACCMODE|unix.O_APPEND), err)
		_, err = unix.FcntlInt(uintptr(s.fd), unix.F_SETFL, flags&^unix.O_APPEND|flag)
		s.say("F_SETFL", 0, err)
		s.pwrite("flagged\n", 2)
		s.size()
	}
}

// replaced puts another file at the name and goes on with the one that was there.
func replaced(s *subject) {
	s.write("x\n")
	fd, err := unix.Open(s.path+".tmp", unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	s.say("open", min(fd, 0), err)
	s.say("close", 0, unix.Close(fd))
	s.say("rename", 0, unix.Rename(s.path+".tmp", s.path))
	s.write("y\n")
	s.size()
}

// second opens the file once more and writes to both in turn.
func second(flags int) func(*subject) {
	return func(s *subject) {
		s.write("x\n")
		other := s.open(flags)
		s.writeTo(other, "OTHER\n")
		s.write("y\n")
		s.writeTo(other, "OTHER AGAIN\n")
		s.say("close", 0, unix.Close(other))
		s.write("z\n")
		s.size()
	}
}

func sendfile(s *subject) {
	text := []byte("sent\n")
	from, err := os.CreateTemp("", "sendfile")
	if err != nil {
		s.say("create", 0, err)
		return
	}
	defer os.Remove(from.Name())
	defer from.Close()
	_, _ = from.Write(text) // a short file shows in what sendfile returns
	var off int64
	n, err := unix.Sendfile(s.fd, int(from.Fd()), &off, len(text))
	s.took("sendfile", text, n, err)
}

func splice(s *subject) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		s.say("pipe", 0, err)
		return
	}
	text := []byte("spliced\n")
	_, _ = unix.Write(p[1], text) // a pipe takes so little
	n, err := unix.Splice(p[0], nil, s.fd, nil, len(text), unix.SPLICE_F_NONBLOCK)
	s.took("splice", text, int(n), err)
	_ = unix.Close(p[0])
	_ = unix.Close(p[1])
}

func mapped(s *subject) {
	m, err := unix.Mmap(s.fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err == nil {
		s.said = append(s.said, "MAPPED")
		_ = unix.Munmap(m) // it was mapped just now
	}
	s.write("x\n")
}

// openings are the flags that a subject opens its file with.
var openings = map[string]int{
	"append":          unix.O_WRONLY | unix.O_APPEND,
	"append-trunc":    unix.O_WRONLY | unix.O_APPEND | unix.O_TRUNC,
	"append-excl":     unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_EXCL,
	"append-nonblock": unix.O_WRONLY | unix.O_APPEND | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_NOATIME,
	"append-sync":     unix.O_WRONLY | unix.O_APPEND | unix.O_SYNC,
	"append-dsync":    unix.O_WRONLY | unix.O_APPEND | unix.O_DSYNC,
	"append-rdwr":     unix.O_RDWR | unix.O_APPEND,
	"write":           unix.O_WRONLY,
	"write-trunc":     unix.O_WRONLY | unix.O_TRUNC | unix.O_CREAT,
	"rdwr":            unix.O_RDWR,
	"read":            unix.O_RDONLY,
}

// opened runs an operation in a folder and returns the subject and what its file then holds.
func opened(t *testing.T, dir, name string, flags int, op operation) (*subject, []byte) {
	t.Helper()
	s := &subject{path: filepath.Join(dir, name)}
	if flags&unix.O_EXCL == 0 {
		fd, err := unix.Open(s.path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
		must(t, err)
		s.writeTo(fd, "first line\n")
		must(t, unix.Close(fd))
	}
	if s.fd = s.open(flags); s.fd < 0 {
		return s, nil
	}
	op.run(s)
	s.say("close", 0, unix.Close(s.fd))
	b, err := os.ReadFile(s.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("read %s: %v", s.path, err)
	}
	return s, b
}

// Every way to open a file, every thing to do with it, in each attribution: a program sees
// what it sees on ext4, and the bytes that were accepted come out, each once, in order.
func TestFlagsAndOperationsAsOnExt4(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		off := t.TempDir()
		want := map[string][]byte{}
		for flagName, flags := range openings {
			for opName, op := range operations {
				name := flagName + "." + opName
				on, held := opened(t, p.Point(), name, flags, op)
				twin, heldOff := opened(t, off, name, flags, op)
				want[name] = on.stream
				said, saidOff := strings.Join(on.said, "\n"), strings.Join(twin.said, "\n")
				switch {
				case opName == "mmap" && strings.Contains(said, "MAPPED"):
					t.Errorf("%s: a shared writable mapping was given", name)
				case op.loose != "":
				case said != saidOff:
					t.Errorf("%s: on the mount\n%s\non ext4\n%s", name, said, saidOff)
				case !bytes.Equal(held, heldOff):
					t.Errorf("%s: on the mount the file holds %d bytes, %q, on ext4 %d, %q", name, len(held), held[:min(len(held), 100)], len(heldOff), heldOff[:min(len(heldOff), 100)])
				}
			}
		}
		for name, stream := range want {
			arrives(t, p.Out(name), stream)
		}
		stop(t, p)
		for name, stream := range want {
			same(t, p.Out(name), stream)
		}
	})
}

// Processes append through one descriptor that they share, as a shell's children do.
func TestInheritedDescriptor(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		c.start(t, p)
		twin(t, p, `cd "$1"; exec 3>>a.log; for i in $(seq 200); do (echo "child $i" >&3); done; echo parent >&3; exec 3>&-`)
		stop(t, p)
	})
}
