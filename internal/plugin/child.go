package plugin

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pipeBytes   = 1 << 20 // asked of the kernel for the child's input (F_SETPIPE_SZ); less does too
	maxAckLine  = 64      // longest line on descriptor 3
	endPatience = time.Second
)

// event is what a child's goroutines tell its runner. Exactly one field is set.
type event struct {
	wrote *unit  // all of it is in the pipe
	err   error  // the input takes no more
	ack   uint64 // "ok N"
	bad   string // the beginning of another line on descriptor 3, with its end if that is in it
	exit  *exit  // the last event
}

// exit is how a child ended.
type exit struct {
	state string // as people say it: "exit status 1"
	good  bool   // exit status 0
	taken int64  // bytes of its input that it has read
}

// child is one process with its pipes and the goroutines that serve them. run, stop and
// signal belong to the runner; the events must be taken until exit has come.
type child struct {
	cmd    *exec.Cmd
	in     *os.File      // write end of its input
	work   chan *unit    // to the writer, which has room for one
	quit   chan struct{} // closed: the writer ends
	events chan event    //
	put    atomic.Int64  // bytes written to in
	lines  bool          // AckLine: each unit has a header

	mu     sync.Mutex
	reaped bool     // its id may be another's
	closed bool     // in
	rest   *os.File // read end of its input, once in is closed: what is left in it
}

// startChild starts the program. stdout, which stays the caller's, may be nil: /dev/null. logs
// gets what it writes to its standard error.
func startChild(p *Plugin, env []string, stdout *os.File, logs *lineLog) (_ *child, err error) {
	var ps pipes
	defer func() {
		if err != nil {
			ps.closeAll()
		}
	}()
	argv := p.argv()
	c := &child{cmd: exec.Command(argv[0], argv[1:]...), work: make(chan *unit, 1), quit: make(chan struct{}), events: make(chan event, 16), lines: p.Ack == AckLine}
	c.cmd.Env, c.cmd.Dir = env, "/"
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if stdout != nil {
		c.cmd.Stdout = stdout
	}
	errs, acks, err := c.connect(&ps)
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the plugin: %w", err)
	}
	for _, f := range ps.childs {
		f.Close()
	}
	c.serve(errs, acks, logs)
	return c, nil
}

// connect makes the pipes: the child's input, what it writes to its standard error and, with
// AckLine, to descriptor 3.
func (c *child) connect(ps *pipes) (errs, acks *os.File, err error) {
	stdin, in, err := ps.pipe(true)
	if err != nil {
		return nil, nil, err
	}
	stderr, errs, err := ps.pipe(false)
	if err != nil {
		return nil, nil, err
	}
	c.cmd.Stdin, c.cmd.Stderr, c.in = stdin, stderr, in
	if c.lines {
		theirs, ours, err := ps.pipe(false)
		if err != nil {
			return nil, nil, err
		}
		c.cmd.ExtraFiles, acks = []*os.File{theirs}, ours
	}
	return errs, acks, nil
}

// serve starts the goroutines. The one that waits for the end of the process ends last.
func (c *child) serve(errs, acks *os.File, logs *lineLog) {
	var writing sync.WaitGroup
	writing.Go(c.write)
	reading := []*os.File{errs}
	logged, acked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(logged)
		logs.from(errs, c.cmd.Process.Pid)
	}()
	if acks == nil {
		close(acked)
	} else {
		reading = append(reading, acks)
		go func() {
			defer close(acked)
			c.readAcks(acks)
		}()
	}
	go func() {
		e := c.wait()
		c.endInput()
		writing.Wait() // then put is all that was written, and what is left in the pipe stays
		e.taken = c.taken()
		if c.rest != nil {
			c.rest.Close()
		}
		patience := time.After(endPatience) // what it wrote is in the pipes; somebody who fled its group may hold them open
		for _, done := range []chan struct{}{acked, logged} {
			select {
			case <-done:
			case <-patience:
				patience = closedTime
			}
		}
		for _, f := range reading {
			f.Close()
		}
		<-acked
		<-logged
		c.events <- event{exit: e}
	}()
}

// closedTime is a moment that has passed.
var closedTime = func() <-chan time.Time {
	c := make(chan time.Time)
	close(c)
	return c
}()

// wait waits for the process to end, and kills what it leaves behind in its group.
func (c *child) wait() *exit {
	pid := c.cmd.Process.Pid
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	// It is not reaped yet, so that its number, which the group has too, is no one else's.
	_ = unix.Kill(-pid, unix.SIGKILL)
	c.mu.Lock()
	c.reaped = true
	c.mu.Unlock()
	_ = c.cmd.Wait() // ProcessState tells
	return &exit{state: c.cmd.ProcessState.String(), good: c.cmd.ProcessState.Success()}
}

// signal signals the process and its group, if it has not ended.
func (c *child) signal(s syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped {
		_ = unix.Kill(-c.cmd.Process.Pid, s)
	}
}

// endInput ends the input: the process sees its end when it has read what is there. How
// much that is can still be seen through a read end of the same pipe (/proc/self/fd opens
// one), which keeps no reader waiting.
func (c *child) endInput() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.closed = true
	if raw, err := c.in.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			c.rest, _ = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		})
	}
	close(c.quit)
	c.in.Close()
}

// give hands a unit to the writer, which must be idle. If the process has ended, nobody
// takes it.
func (c *child) give(u *unit) { c.work <- u }

// taken is how many bytes of its input the process has read, or fewer. (TIOCINQ is FIONREAD by
// another name, ioctl_tty(2); on a pipe it is what is in it, whichever end is asked.)
func (c *child) taken() int64 {
	put := c.put.Load() // before the look at what is left: the result is never too high
	left := -1
	c.mu.Lock()
	defer c.mu.Unlock()
	in := c.in
	if c.closed {
		if in = c.rest; in == nil {
			return 0
		}
	}
	raw, err := in.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	if err != nil || left < 0 {
		return 0
	}
	return max(0, put-int64(left))
}

// deaf reports whether nobody can read the input any more, though the process may live: the
// next write would say so, but there may be none (POLLERR of a pipe's write end, pipe(7)).
func (c *child) deaf() (deaf bool) {
	if raw, err := c.in.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd)}}
			n, err := unix.Poll(p, 0)
			deaf = err == nil && n == 1 && p[0].Revents&unix.POLLERR != 0
		})
	}
	return deaf
}

// write writes the units to the pipe.
func (c *child) write() {
	for {
		select {
		case <-c.quit:
			return
		case u := <-c.work:
			if err := c.writeUnit(u); err != nil {
				c.events <- event{err: err}
				return
			}
			c.events <- event{wrote: u}
		}
	}
}

func (c *child) writeUnit(u *unit) error {
	if c.lines {
		if err := c.writeAll(fmt.Appendf(nil, "batch %d %d %d\n", u.seq, u.lines, u.bytes)); err != nil {
			return err
		}
	}
	for _, s := range u.segs {
		for len(s) > 0 {
			n := len(s)
			if !c.lines {
				n = wholeLines(s)
			}
			if err := c.writeAll(s[:n]); err != nil {
				return err
			}
			s = s[n:]
		}
	}
	return nil
}

// pipeBuf is what one write to a pipe writes whole or not at all (PIPE_BUF, pipe(7)).
const pipeBuf = 4096

// wholeLines returns how much of b one write takes: lines that the pipe takes whole, so that
// a child whose role is killed finds no line cut off but one that is longer than that.
func wholeLines(b []byte) int {
	if len(b) <= pipeBuf {
		return len(b)
	}
	for i := pipeBuf - 1; i >= 0; i-- {
		if b[i] == '\n' {
			return i + 1
		}
	}
	for i := pipeBuf; i < len(b); i++ {
		if b[i] == '\n' {
			return i + 1
		}
	}
	return len(b)
}

// writeAll writes b, counting as it goes.
func (c *child) writeAll(b []byte) error {
	raw, err := c.in.SyscallConn()
	if err != nil {
		return err
	}
	for len(b) > 0 {
		var n int
		var werr error
		err := raw.Write(func(fd uintptr) bool {
			n, werr = unix.Write(int(fd), b)
			return werr != unix.EAGAIN
		})
		switch {
		case err != nil:
			return err
		case werr == unix.EINTR:
			continue
		case werr != nil:
			return fmt.Errorf("write to the plugin: %w", werr)
		}
		c.put.Add(int64(n))
		b = b[n:]
	}
	return nil
}

// readAcks reads descriptor 3 to its end.
func (c *child) readAcks(f *os.File) {
	r := bufio.NewReaderSize(f, maxAckLine)
	for {
		line, err := r.ReadSlice('\n')
		text := string(line)
		number, found := strings.CutPrefix(text, "ok ")
		n, bad := strconv.ParseUint(strings.TrimSpace(number), 10, 64)
		switch {
		case err == nil && found && bad == nil:
			c.events <- event{ack: n}
		case err == nil || errors.Is(err, bufio.ErrBufferFull):
			c.events <- event{bad: text}
		}
		for errors.Is(err, bufio.ErrBufferFull) { // the rest of the line is no line
			_, err = r.ReadSlice('\n')
		}
		if err != nil {
			return
		}
	}
}
