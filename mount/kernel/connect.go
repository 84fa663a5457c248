package kernel

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"sync"
	_ "unsafe" // go:linkname

	"bazil.org/fuse"
	"golang.org/x/sys/unix"
)

// bufSize is the library's read buffer, of which each request has one until it is
// answered. The kernel refuses to fill one that is smaller than the largest write and
// its header (fs/fuse/dev.c, fuse_dev_do_read).
//
//go:linkname bufSize bazil.org/fuse.bufSize
var bufSize int

// reqPool gives the library its read buffers.
//
//go:linkname reqPool bazil.org/fuse.reqPool
var reqPool sync.Pool

func init() {
	bufSize = 4096 + MaxWrite
	fresh := reqPool.New
	reqPool.New = func() any {
		m := fresh()
		touch(bufferOf(m))
		return m
	}
}

// bufferOf returns the buffer of one of the library's messages.
func bufferOf(message any) []byte {
	return reflect.ValueOf(message).Elem().FieldByName("buf").Bytes()
}

// touch makes the pages of b present. Where one is not, the kernel has to fault it in when it
// copies a request there, which a process that is being killed meanwhile is refused (mm/gup.c,
// __get_user_pages). Then the request is not one that a successor is given again: its program
// gets EIO (fs/fuse/dev.c, fuse_dev_do_read).
func touch(b []byte) {
	for i := 0; i < len(b); i += 4096 {
		b[i] = 0
	}
}

const linkFD = "_FTFUSE_LINK_FD" // the helper finds the socket for the library here

// connecting guards what Connect changes of the process meanwhile: PATH, and one socket
// that children inherit.
var connecting sync.Mutex

// Connect returns the library's side of the device. The first time, it negotiates with
// the kernel: passthrough if want (and the kernel can, and this process may register
// backing files), writes of MaxWrite. On a device
// from Attach it replays the saved INIT and the kernel hears nothing. The Conn has a
// descriptor of its own.
//
// It may be called once. It starts a short-lived child, this very binary, whose main
// must call MaybeHelper.
func (d *Device) Connect(want bool) (*fuse.Conn, error) {
	connecting.Lock()
	defer connecting.Unlock()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket for the FUSE library: %w", err)
	}
	ours, theirs := pair[0], pair[1]
	defer unix.Close(ours)
	defer unix.Close(theirs)
	request := d.request
	if d.reply != nil {
		request = replay(d.request, d.reply)
	}
	if _, err := unix.Write(ours, request); err != nil {
		return nil, fmt.Errorf("give INIT to the FUSE library: %w", err)
	}
	c, err := handOver(theirs)
	if err != nil {
		return nil, fmt.Errorf("connect the FUSE library: %w", err)
	}
	if err := d.negotiate(ours, want); err != nil {
		c.Close()
		return nil, err
	}
	if err := d.replace(theirs); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// negotiate reads the library's reply to INIT from sock and sends it on, rewritten,
// unless the kernel had one.
func (d *Device) negotiate(sock int, want bool) error {
	b := make([]byte, 4096)
	n, _, err := unix.Recvfrom(sock, b, unix.MSG_DONTWAIT)
	if err == nil {
		err = checkReply(b[:n], d.request)
	}
	if err != nil {
		return fmt.Errorf("read the FUSE library's reply to INIT: %w", err)
	}
	if d.reply != nil {
		return nil
	}
	out := rewrite(d.request, b[:n], want && capable(unix.CAP_SYS_ADMIN) && fpNoPass.Inject() == nil)
	if _, err := unix.Write(d.fd, out); err != nil {
		return fmt.Errorf("answer INIT: %w; was it unmounted meanwhile?", err)
	}
	d.reply = out
	return nil
}

// replace puts a duplicate of the device's descriptor in place of the library's copy of
// the socket.
func (d *Device) replace(sock int) error {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", sock))
	if err != nil {
		return fmt.Errorf("look for the FUSE library's descriptor: %w", err)
	}
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("look for the FUSE library's descriptor: %w", err)
	}
	for _, e := range list {
		fd, _ := strconv.Atoi(e.Name())
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || to != name || fd == sock {
			continue
		}
		if err := unix.Dup3(d.fd, fd, unix.O_CLOEXEC); err != nil {
			return fmt.Errorf("give /dev/fuse to the FUSE library: %w", err)
		}
		return nil
	}
	return fmt.Errorf("the FUSE library has no copy of %s", name)
}

// handOver makes the library take sock for its connection.
func handOver(sock int) (*fuse.Conn, error) {
	bin, err := os.MkdirTemp("", "ftfuse-helper-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the helper: %w", err)
	}
	defer os.RemoveAll(bin)
	// Not os.Executable: the file may have been replaced since by an upgrade.
	if err := os.Symlink(fmt.Sprintf("/proc/%d/exe", os.Getpid()), filepath.Join(bin, helperName)); err != nil {
		return nil, fmt.Errorf("link the helper: %w", err)
	}
	defer setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))()
	defer setenv(linkFD, strconv.Itoa(sock))()
	if _, err := unix.FcntlInt(uintptr(sock), unix.F_SETFD, 0); err != nil {
		return nil, fmt.Errorf("let the helper inherit a socket: %w", err)
	}
	defer unix.CloseOnExec(sock)
	// The directory is only told to the helper, and unmounted where INIT fails: not the
	// mount point.
	return fuse.Mount(bin,
		fuse.LockingFlock(), fuse.LockingPOSIX(),
		// A RELEASE is a background request: beyond the limit (12 by default) it would wait
		// in the kernel while later requests of the program that closed go past it
		// (fs/fuse/dev.c, flush_bg_queue).
		fuse.MaxBackground(math.MaxUint16), fuse.CongestionThreshold(math.MaxUint16))
}

// setenv sets a variable of the process and returns what undoes it.
func setenv(name, value string) (undo func()) {
	old, had := os.LookupEnv(name)
	os.Setenv(name, value)
	return func() {
		if had {
			os.Setenv(name, old)
		} else {
			os.Unsetenv(name)
		}
	}
}

// MaybeHelper turns this process into the helper that hands a socket to the FUSE
// library, and does not return, if Connect started it. main calls it before anything
// else.
func MaybeHelper() {
	if filepath.Base(os.Args[0]) != helperName || os.Getenv(commFD) == "" || os.Getenv(linkFD) == "" {
		return
	}
	if err := help(); err != nil {
		fmt.Fprintln(os.Stderr, "ftfuse helper:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// help speaks fusermount3's side of the protocol.
func help() error {
	sock, err := strconv.Atoi(os.Getenv(commFD))
	if err != nil {
		return fmt.Errorf("read %s: %w", commFD, err)
	}
	fd, err := strconv.Atoi(os.Getenv(linkFD))
	if err != nil {
		return fmt.Errorf("read %s: %w", linkFD, err)
	}
	if err := unix.Sendmsg(sock, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return fmt.Errorf("hand the socket over: %w", err)
	}
	return nil
}
