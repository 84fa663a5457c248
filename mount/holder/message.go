package holder

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// protocol is the version of the messages below. Holder and worker may be of different
// binaries: unknown fields and types are ignored, a change that breaks either raises it.
const protocol = 1

// Types of messages. Each is one packet: a JSON object, with at most one descriptor.
const (
	typeHello     = "hello"     // worker: settings; descriptor: its configuration
	typeGo        = "go"        // holder: begin; descriptor: the connection to take over
	typeRefuse    = "refuse"    // holder: do not begin, Error says why
	typeKeep      = "keep"      // worker: State; descriptor: the connection
	typeReady     = "ready"     // worker: it serves
	typeStop      = "stop"      // holder: drain, unmount, end; a second one: at once. Signal says why
	typeLeave     = "leave"     // holder: stop reading, close, exit without unmounting
	typeFailed    = "failed"    // worker: Error; the connection is to be dropped
	typeUnmounted = "unmounted" // worker: nothing is left to keep
	typeReloaded  = "reloaded"  // worker: a reload that a SIGHUP began has ended; done: settings, descriptor: its configuration
	typePing      = "ping"      // holder
	typePong      = "pong"      // worker
	typeHandover  = "handover"  // command: swap the worker
	typeDone      = "done"      // holder: it was swapped; Version is the new one
	typeAdopt     = "adopt"     // worker to worker: give me the connection
	typeOffer     = "offer"     // its answer: State; descriptor: the connection
)

// maxMessage is the largest packet that is read.
const maxMessage = 64 << 10

type message struct {
	V        int       `json:"v"`
	Type     string    `json:"type"`
	Error    string    `json:"error,omitempty"`
	Version  string    `json:"version,omitempty"` // of the binary
	State    []byte    `json:"state,omitempty"`   // what the next worker needs beside the descriptor
	Point    string    `json:"point,omitempty"`
	Signal   string    `json:"signal,omitempty"`
	Settings *Settings `json:"settings,omitempty"`
	Reexec   int       `json:"reexec,omitempty"` // version of the holder's own state that the binary takes over

	fd int // -1: none
}

// Settings is what a worker's configuration says to its holder.
type Settings struct {
	Point     string        `json:"point"`    // mount point
	Dir       string        `json:"dir"`      // <state_dir>/mount
	Timeout   time.Duration `json:"timeout"`  // holder_timeout
	Shutdown  time.Duration `json:"shutdown"` // shutdown_timeout
	LogLevel  string        `json:"log_level"`
	LogFormat string        `json:"log_format"`
}

// errMessage is returned for a packet that is not a message of this version.
var errMessage = errors.New("not a message of the holder's protocol")

// channel is one end of a SEQPACKET socket. send is safe for concurrent use, and so is
// send beside recv.
type channel struct {
	c  *net.UnixConn
	mu sync.Mutex
}

// fileChannel makes a channel of a descriptor, which it takes.
func fileChannel(fd int) (*channel, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use descriptor %d as a socket: %w", fd, err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("use descriptor %d as a socket: %w", fd, syscall.ENOTSOCK)
	}
	return &channel{c: u}, nil
}

// sendLimit is how long a send may wait for a peer that reads nothing.
const sendLimit = 5 * time.Second

// send sends m with the descriptor fd, unless that is negative.
func (c *channel) send(m message, fd int) error {
	m.V = protocol
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", m.Type, err)
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.c.SetWriteDeadline(time.Now().Add(sendLimit))
	if _, _, err := c.c.WriteMsgUnix(b, rights, nil); err != nil {
		return fmt.Errorf("send %s: %w", m.Type, err)
	}
	return nil
}

// recv returns the next message; the caller owns its descriptor. io.EOF is the end.
func (c *channel) recv() (message, error) {
	b := make([]byte, maxMessage)
	oob := make([]byte, 256)
	n, k, flags, _, err := c.c.ReadMsgUnix(b, oob)
	fds := descriptors(oob[:k])
	if err == nil && n == 0 && k == 0 {
		err = io.EOF
	}
	if err != nil {
		closeAll(fds)
		return message{}, err
	}
	m := message{fd: -1}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(fds) > 1 || json.Unmarshal(b[:n], &m) != nil || m.V != protocol {
		closeAll(fds)
		return message{}, fmt.Errorf("%w: %d bytes, %d descriptors, version %d, want %d", errMessage, n, len(fds), m.V, protocol)
	}
	if len(fds) == 1 {
		m.fd = fds[0]
	}
	return m, nil
}

func (c *channel) close() { _ = c.c.Close() }

// descriptors takes the descriptors out of control data.
func descriptors(oob []byte) []int {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for _, m := range all {
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// memory returns a descriptor of an unnamed file in memory that holds b.
func memory(name string, b []byte) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make a file in memory: %w", err)
	}
	for off := 0; off < len(b); {
		n, err := unix.Pwrite(fd, b[off:], int64(off))
		if err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("write to a file in memory: %w", err)
		}
		off += n
	}
	return fd, nil
}

// maxMemory is the largest file in memory that is read: a configuration file may have
// 1 MiB, and there may be two.
const maxMemory = 3 << 20

// contents reads what memory wrote.
func contents(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at a file in memory: %w", err)
	}
	if st.Size > maxMemory {
		return nil, fmt.Errorf("read a file in memory: %d bytes, want %d at most", st.Size, maxMemory)
	}
	b := make([]byte, st.Size)
	for off := 0; off < len(b); {
		n, err := unix.Pread(fd, b[off:], int64(off))
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, fmt.Errorf("read a file in memory: %w", err)
		}
		off += n
	}
	return b, nil
}
