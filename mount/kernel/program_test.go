package kernel

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A program that uses the mount is a process of its own, too. The test holds /dev/fuse
// and starts servers: if it had files of the mount, a child of it would close copies of
// them at its exec, send FLUSH to a server that is not there yet, and wait for ever with
// its parent (TestTheHolderMustHaveNoFileOfItsMount).

const envProgram = "FTFUSE_KERNEL_TEST_PROGRAM" // the mount point

// programMain does the system calls that its standard input names, one a line, and says
// "ok N" or the name of the error.
func programMain(point string) {
	big, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		fmt.Println(err)
		return
	}
	sc := bufio.NewScanner(os.Stdin)
	for sc.Scan() {
		n, err := call(point, big, strings.Fields(sc.Text()))
		if err != nil {
			errno, _ := err.(unix.Errno)
			fmt.Println(unix.ErrnoName(errno))
		} else {
			fmt.Println("ok", n)
		}
	}
}

func call(point string, big []byte, f []string) (n int, err error) {
	arg := func(i int) int {
		v, _ := strconv.Atoi(f[i])
		return v
	}
	switch f[0] {
	case "open": // NAME FLAGS
		return unix.Open(filepath.Join(point, f[1]), arg(2)|unix.O_CLOEXEC, 0o666)
	case "write": // FD TEXT
		return unix.Write(arg(1), []byte(f[2]+"\n"))
	case "pwrite": // FD TEXT OFFSET
		return unix.Pwrite(arg(1), []byte(f[2]+"\n"), int64(arg(3)))
	case "many": // FD TEXT COUNT
		for i := range arg(3) {
			if _, err := unix.Write(arg(1), []byte(f[2]+"\n")); err != nil {
				return i, err
			}
		}
		return arg(3), nil
	case "big": // FD SIZE FROM: from offset FROM of memory that is aligned to pages
		return unix.Write(arg(1), big[arg(3):][:arg(2)])
	case "read": // FD SIZE
		return unix.Pread(arg(1), big[:arg(2)], 0)
	case "close":
		return 0, unix.Close(arg(1))
	case "fsync":
		return 0, unix.Fsync(arg(1))
	case "truncate": // FD SIZE
		return 0, unix.Ftruncate(arg(1), int64(arg(2)))
	case "setfl": // FD FLAGS
		return unix.FcntlInt(uintptr(arg(1)), unix.F_SETFL, arg(2))
	case "touch": // NAME
		return 0, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(point, f[1]), []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}, 0)
	case "stat": // NAME
		var st unix.Stat_t
		err := unix.Stat(filepath.Join(point, f[1]), &st)
		return int(st.Mode), err
	case "exec": // a child, which closes its copies of every file
		return 0, exec.Command("/bin/true").Run()
	}
	return 0, unix.ENOSYS
}

type program struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	said chan string
}

func (r *rig) program() *program {
	r.t.Helper()
	p := &program{t: r.t, cmd: exec.Command(os.Args[0]), said: make(chan string, 100)}
	p.cmd.Env = append(os.Environ(), envProgram+"="+r.point)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		p.in, err = p.cmd.StdinPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	go func() {
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			p.said <- sc.Text()
		}
		close(p.said)
	}()
	r.programs = append(r.programs, p)
	return p
}

// start has the program do a call and does not wait.
func (p *program) start(f ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, f...); err != nil {
		p.t.Fatal(err)
	}
}

// result waits for the call that was started.
func (p *program) result() string {
	p.t.Helper()
	select {
	case line, ok := <-p.said:
		if !ok {
			p.t.Fatal("the program ended")
		}
		return line
	case <-time.After(20 * time.Second):
		p.t.Fatal("the program waits for ever")
		return ""
	}
}

// waits reports whether the call that was started has not returned after a while.
func (p *program) waits(d time.Duration) bool {
	select {
	case line := <-p.said:
		p.t.Errorf("the call returned %q", line)
		return false
	case <-time.After(d):
		return true
	}
}

func (p *program) do(f ...any) string {
	p.t.Helper()
	p.start(f...)
	return p.result()
}

func (p *program) want(want string, f ...any) {
	p.t.Helper()
	if got := p.do(f...); got != want {
		p.t.Fatalf("%v: %s, want %s", f, got, want)
	}
}

func (p *program) open(name string, flags int) (fd int) {
	p.t.Helper()
	got := p.do("open", name, flags)
	if _, err := fmt.Sscanf(got, "ok %d", &fd); err != nil {
		p.t.Fatalf("open %s: %s", name, got)
	}
	return fd
}

func (p *program) end() {
	_ = p.in.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}
