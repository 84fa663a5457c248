package kernel

import (
	"bufio"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bazil.org/fuse"
	"golang.org/x/sys/unix"
)

// The file system under test is served by a process of its own, this test binary run
// again, so that it can be killed. It is
// the least that shows what the kernel does: one directory, whose files stand for those
// of a plain one. What it does with a file is told by its name:
//
//	plain…  every open is direct I/O, nothing else
//	hang…   WRITE and SETATTR are not answered
//	mix…    a reader with O_NOATIME gets direct I/O without passthrough
//	two…    each open gets a backing id of its own
//	else    append writers get passthrough, others passthrough and direct I/O
//
// Node ids, handles and backing ids are the same in every process that serves.

const envServe = "FTFUSE_KERNEL_TEST_SERVE" // POINT:DIR

func TestMain(m *testing.M) {
	MaybeHelper()
	if point := os.Getenv(envProgram); point != "" {
		programMain(point)
		os.Exit(0)
	}
	if arg := os.Getenv(envServe); arg != "" {
		if err := serveMain(arg); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type testServer struct {
	dir  string
	dev  *Device
	out  *bufio.Writer
	name map[fuse.NodeID]string
}

// serveMain serves until the connection ends. A socket on descriptor 3 takes the
// device's descriptor and state, or gives them if it has them.
func serveMain(arg string) error {
	point, dir, _ := strings.Cut(arg, ":")
	s := &testServer{dir: dir, out: bufio.NewWriter(os.Stdout), name: map[fuse.NodeID]string{}}
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		s.name[nodeOf(e.Name())] = e.Name()
	}
	if saved, err := os.ReadFile(filepath.Join(dir, ".state")); err == nil {
		fd, err := receiveFD(3)
		if err != nil {
			return err
		}
		if s.dev, err = Attach(fd, saved); err != nil {
			return err
		}
	} else if s.dev, err = Mount(point, Options{AllowOther: os.Geteuid() == 0}); err != nil {
		return err
	}
	attached := s.dev.State() != nil
	c, err := s.dev.Connect(true)
	if err != nil {
		return err
	}
	if !attached {
		if err := os.WriteFile(filepath.Join(dir, ".state"), s.dev.State(), 0o600); err != nil {
			return err
		}
		if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(s.dev.FD()), nil, 0); err != nil {
			return err
		}
	} else if err := s.dev.Resend(); err != nil {
		return err
	}
	s.say("ready passthrough=%v max_write=%d", s.dev.Passthrough(), s.dev.MaxWrite())
	for {
		r, err := c.ReadRequest()
		switch {
		case err == nil:
			s.answer(r)
		case err == io.EOF || err == syscall.ENODEV:
			s.say("end")
			return nil
		case err != syscall.EINTR && err != syscall.EAGAIN && err != syscall.ENOENT:
			return err
		}
	}
}

func (s *testServer) say(format string, args ...any) {
	fmt.Fprintf(s.out, format+"\n", args...)
	s.out.Flush()
}

func nodeOf(name string) fuse.NodeID {
	h := fnv.New32()
	_, _ = h.Write([]byte(name))
	return fuse.NodeID(h.Sum32()) + 2
}

func (s *testServer) path(id fuse.NodeID) string { return filepath.Join(s.dir, s.name[id]) }

func (s *testServer) attr(id fuse.NodeID) (fuse.Attr, error) {
	if id == fuse.RootID {
		return fuse.Attr{Inode: 1, Mode: os.ModeDir | os.ModeSticky | 0o777, Nlink: 2, Uid: uint32(os.Getuid())}, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(s.path(id), &st); err != nil {
		return fuse.Attr{}, err
	}
	return fuse.Attr{Inode: uint64(id), Size: uint64(st.Size), Mode: 0o666, Nlink: 1, Uid: uint32(os.Getuid()), Mtime: time.Unix(st.Mtim.Unix())}, nil
}

func (s *testServer) entry(name string) (*fuse.LookupResponse, error) {
	id := nodeOf(name)
	s.name[id] = name
	a, err := s.attr(id)
	return &fuse.LookupResponse{Node: id, Attr: a}, err
}

func (s *testServer) answer(req fuse.Request) {
	h := req.Hdr()
	resent := ""
	if uint64(h.ID)&Resent != 0 {
		resent = " resent"
	}
	switch r := req.(type) {
	case *fuse.LookupRequest:
		if e, err := s.entry(r.Name); err != nil {
			r.RespondError(err)
		} else {
			s.dev.RespondEntry(h, e)
		}
	case *fuse.GetattrRequest:
		if a, err := s.attr(r.Node); err != nil {
			r.RespondError(err)
		} else {
			s.dev.RespondAttr(h, &a)
		}
	case *fuse.SetattrRequest:
		s.say("SETATTR %s size=%v pid=%d%s", s.name[r.Node], r.Valid.Size(), r.Pid, resent)
		if strings.HasPrefix(s.name[r.Node], "hang") && resent == "" {
			return
		}
		if r.Valid.Size() {
			_ = unix.Truncate(s.path(r.Node), int64(r.Size))
		}
		a, _ := s.attr(r.Node)
		s.dev.RespondAttr(h, &a)
	case *fuse.CreateRequest:
		f, err := os.OpenFile(filepath.Join(s.dir, r.Name), os.O_CREATE|os.O_WRONLY, 0o666)
		if err != nil {
			r.RespondError(err)
			return
		}
		f.Close()
		e, _ := s.entry(r.Name)
		flags, id := s.mode(r.Name, uint32(r.Flags))
		s.say("CREATE %s flags=%#x", r.Name, flags)
		if err := s.dev.RespondCreate(h, e, uint64(e.Node), flags, id); err != nil {
			s.say("CREATE refused: %v", err)
		}
	case *fuse.OpenRequest:
		flags, id := s.mode(s.name[r.Node], uint32(r.Flags))
		s.say("OPEN %s flags=%#x trunc=%v", s.name[r.Node], flags, r.Flags&fuse.OpenTruncate != 0)
		if err := s.dev.RespondOpen(h, uint64(r.Node), flags, id); err != nil {
			s.say("OPEN refused: %v", err)
		}
	case *fuse.WriteRequest:
		s.say("WRITE %s %d%s", s.name[r.Node], len(r.Data), resent)
		if strings.HasPrefix(s.name[r.Node], "hang") && resent == "" {
			return
		}
		data := append([]byte(nil), r.Data...)
		kept := Forgo(h)
		f, err := os.OpenFile(s.path(kept.Node), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			s.dev.RespondError(kept.ID, syscall.EIO)
			return
		}
		n, _ := f.Write(data)
		f.Close()
		s.dev.RespondWrite(kept.ID, n)
	case *fuse.ReadRequest:
		s.say("READ %s", s.name[r.Node])
		b := make([]byte, r.Size)
		f, err := os.Open(s.path(r.Node))
		if err != nil {
			r.RespondError(err)
			return
		}
		n, _ := f.ReadAt(b, r.Offset)
		f.Close()
		r.Respond(&fuse.ReadResponse{Data: b[:n]})
	case *fuse.ReleaseRequest:
		s.say("RELEASE %s", s.name[r.Node])
		r.Respond()
	case *fuse.FlushRequest:
		r.Respond()
	case *fuse.FsyncRequest:
		r.Respond()
	case *fuse.InterruptRequest:
		r.Respond()
	case *fuse.ForgetRequest:
		r.Respond()
	case *fuse.BatchForgetRequest:
		r.Respond()
	default:
		req.RespondError(syscall.ENOSYS)
	}
}

// mode decides how a file is opened.
func (s *testServer) mode(name string, flags uint32) (open uint32, backing int32) {
	if !s.dev.Passthrough() || strings.HasPrefix(name, "plain") || strings.HasPrefix(name, "mix") && flags&syscall.O_NOATIME != 0 {
		return OpenDirectIO, 0
	}
	open = OpenPassthrough
	if flags&(syscall.O_ACCMODE|syscall.O_APPEND) != syscall.O_WRONLY|syscall.O_APPEND {
		open |= OpenDirectIO
	}
	return open, s.backing(name)
}

// backing returns the backing id of a file, which a predecessor may have opened.
func (s *testServer) backing(name string) int32 {
	note := filepath.Join(s.dir, ".id-"+name)
	if text, err := os.ReadFile(note); err == nil && !strings.HasPrefix(name, "two") {
		n, _ := strconv.Atoi(string(text))
		return int32(n)
	}
	f, err := os.Open(filepath.Join(s.dir, name))
	if err != nil {
		s.say("error %v", err)
		return 0
	}
	defer f.Close()
	id, err := s.dev.OpenBacking(int(f.Fd()))
	if err != nil {
		s.say("error %v", err)
	}
	_ = os.WriteFile(note, []byte(strconv.Itoa(int(id))), 0o600)
	return id
}

// rig is the test's side of a served mount.
type rig struct {
	t        *testing.T
	point    string
	dir      string // what stands behind its files
	fd       int    // a duplicate of /dev/fuse, as a holder has; -1 when it was dropped
	env      []string
	cred     *syscall.Credential
	cmd      *exec.Cmd
	said     chan string
	programs []*program
	mu       sync.Mutex
	all      []string
}

func newRig(t *testing.T, env ...string) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := stoppedRig(t, env...)
	r.serve()
	return r
}

func stoppedRig(t *testing.T, env ...string) *rig {
	t.Helper()
	r := &rig{t: t, point: filepath.Join(t.TempDir(), "mnt"), dir: t.TempDir(), fd: -1, env: env}
	if err := os.Mkdir(r.point, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.cmd != nil {
			r.kill()
		}
		r.drop()
		_ = unix.Unmount(r.point, unix.MNT_DETACH|unix.MNT_FORCE)
		for _, p := range r.programs { // last: their exit would wait for a server
			p.end()
		}
		if t.Failed() {
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Log("the server said:\n" + strings.Join(r.all, "\n"))
		}
	})
	return r
}

// serve starts a process that serves and waits until it does.
func (r *rig) serve() {
	r.t.Helper()
	if line := r.launch(); !strings.HasPrefix(line, "ready") {
		r.t.Fatalf("the server says %q", line)
	}
}

// launch starts a process that serves and returns the first line that it says.
func (r *rig) launch() string {
	r.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer theirs.Close()
	r.cmd = exec.Command(os.Args[0])
	r.cmd.Env = append(append(os.Environ(), envServe+"="+r.point+":"+r.dir), r.env...)
	r.cmd.ExtraFiles = []*os.File{theirs}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.cred}
	r.cmd.Dir = "/"
	out, err := r.cmd.StdoutPipe()
	if err == nil {
		r.cmd.Stderr = r.cmd.Stdout
		err = r.cmd.Start()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.said = make(chan string, 10000)
	go r.collect(out, r.said)
	if r.fd >= 0 {
		if err := unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(r.fd), nil, 0); err != nil {
			r.t.Fatal(err)
		}
	}
	line := r.next()
	if r.fd < 0 && strings.HasPrefix(line, "ready") {
		if r.fd, err = receiveFD(pair[0]); err != nil {
			r.t.Fatal(err)
		}
	}
	return line
}

func (r *rig) collect(out io.Reader, said chan<- string) {
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		r.mu.Lock()
		r.all = append(r.all, sc.Text())
		r.mu.Unlock()
		said <- sc.Text()
	}
	close(said)
}

// next returns the next line that the server says.
func (r *rig) next() string {
	r.t.Helper()
	select {
	case line, ok := <-r.said:
		if !ok {
			r.t.Fatal("the server ended")
		}
		return line
	case <-time.After(20 * time.Second):
		r.t.Fatal("the server says nothing")
		return ""
	}
}

// await reads lines until one begins with text, and returns it.
func (r *rig) await(text string) string {
	r.t.Helper()
	for {
		if line := r.next(); strings.HasPrefix(line, text) {
			return line
		}
	}
}

// heard returns how many lines said so far begin with text. What a system call that has
// returned made the server say is among them once a later request was answered.
func (r *rig) heard(text string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, line := range r.all {
		if strings.HasPrefix(line, text) {
			n++
		}
	}
	return n
}

// settle makes the server say something and waits for it, so that heard is complete.
func (r *rig) settle() {
	r.t.Helper()
	p := r.program()
	fd := p.open("plain-settle", unix.O_CREAT|unix.O_WRONLY)
	p.want("ok 0", "close", fd)
	r.await("RELEASE plain-settle")
	p.end()
}

func (r *rig) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
	r.cmd = nil
}

// drop closes the holder's duplicate.
func (r *rig) drop() {
	if r.fd >= 0 {
		unix.Close(r.fd)
		r.fd = -1
	}
}

// behind returns what is in the file behind a name.
func (r *rig) behind(name string) string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}
