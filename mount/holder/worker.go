package holder

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/systemd"
)

// worker is a process that serves, or is about to. It belongs to the holder's loop.
type worker struct {
	pid  int
	proc *os.Process
	ch   *channel

	version string // its Hello's
	reexec  int
	said    *Settings // nil before its Hello
	config  []byte    // the text that it uses
	begun   bool      // Go was sent
	ready   bool
	since   time.Time // when it became ready
	leaving bool      // Leave was sent
	failed  string    // what it said of its failure
	unmount bool      // it unmounted in order
	heard   time.Time
	parked  atomic.Bool // follow is to stop reading; see quiet
	killed  string      // why the holder killed it
	killAt  time.Time
	killWhy string
}

// ended is how a worker's process ended.
type ended struct {
	code   int // -1: by a signal
	signal string
}

// exit is the code that the holder passes on.
func (e ended) exit() int {
	if e.code < 0 {
		return exitFailed
	}
	return e.code
}

func (e ended) String() string {
	if e.code < 0 {
		return "ended by signal " + e.signal
	}
	return fmt.Sprintf("ended with exit code %d", e.code)
}

// event is what the loop hears of a worker: a message, or its end.
type event struct {
	w      *worker
	m      message
	end    *ended
	parked bool
}

// spawn starts a worker from the file bin. With a text it uses that configuration,
// without one it reads the file.
func (h *holder) spawn(bin string, text []byte) (*worker, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket for a worker: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "worker's socket")
	defer theirs.Close()
	ch, err := fileChannel(pair[0])
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{
		Path: bin, Args: h.o.Args, Stdout: os.Stdout, Stderr: os.Stderr,
		ExtraFiles:  []*os.File{theirs},
		Env:         append(workerEnv(os.Environ(), h.spawned+1), FDEnv+"=3"),
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	if text != nil {
		fd, err := memory("ftfuse-config", text)
		if err != nil {
			ch.close()
			return nil, err
		}
		f := os.NewFile(uintptr(fd), "configuration")
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		cmd.Env = append(cmd.Env, ConfigEnv+"=4")
	}
	h.spawned++
	if err := cmd.Start(); err != nil {
		ch.close()
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	w := &worker{pid: cmd.Process.Pid, proc: cmd.Process, ch: ch, heard: time.Now()}
	h.follow(w)
	return w, nil
}

// workerEnv is env for worker number n, counted from 1, without what is meant for the holder
// alone. n is 0 for the holder's own next binary.
func workerEnv(env []string, n int) []string {
	var out []string
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case name == FDEnv, name == ConfigEnv, name == reexecEnv, name == systemd.Env, strings.HasPrefix(name, "LISTEN_"):
			continue
		case name == failpoint.Env:
			e = name + "=" + failpoint.ForWorker(value, n)
		}
		out = append(out, e)
	}
	return out
}

// follow hands to the loop what w says, and at last how it ended.
func (h *holder) follow(w *worker) {
	h.wg.Go(func() {
		for {
			m, err := w.ch.recv()
			if errors.Is(err, os.ErrDeadlineExceeded) && w.parked.Load() {
				h.events <- event{w: w, parked: true}
				return
			}
			if err != nil {
				break // what cannot be read says no more than its end
			}
			if m.Type == typeHello && m.fd >= 0 {
				m.State, _ = contents(m.fd)
				_ = unix.Close(m.fd)
				m.fd = -1
			}
			h.events <- event{w: w, m: m}
		}
		st, err := w.proc.Wait()
		end := &ended{code: -1, signal: "unknown"}
		if err == nil {
			if s := st.Sys().(syscall.WaitStatus); s.Signaled() {
				end.signal = s.Signal().String()
			} else {
				end.code = s.ExitStatus()
			}
		}
		w.ch.close()
		h.events <- event{w: w, end: end}
	})
}

// kill ends w and notes why.
func (w *worker) kill(why string) {
	if w.killed == "" {
		w.killed = why
	}
	_ = w.proc.Kill() // what has ended already is as good
}

// killIn makes the loop kill w unless it has ended by then.
func (w *worker) killIn(d time.Duration, why string) {
	w.killAt, w.killWhy = time.Now().Add(d), why
}
