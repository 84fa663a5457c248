package kernel

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
)

// MaxWrite is the largest write(2) that is one request, where the kernel can (4.20 and
// later) and the program's buffer is aligned to pages; with an unaligned one it is a
// page less, unless fs.fuse.max_pages_limit allows 257 pages.
const MaxWrite = 1 << 20

// Errors of this package.
var (
	// ErrMount is returned by Mount where the file system cannot be mounted.
	ErrMount = errors.New("cannot mount")
	// ErrState is returned by Attach for a saved state that is damaged, of another version,
	// or does not fit the descriptor.
	ErrState = errors.New("saved state of the connection is not usable")
)

// fpNoPass, armed with error, leaves passthrough out of the negotiation, as a kernel
// before 6.9 does.
var fpNoPass = failpoint.New("kernel/no-passthrough")

// fpNoResend, armed with error, refuses FUSE_NOTIFY_RESEND, as a kernel before 6.9 does.
var fpNoResend = failpoint.New("kernel/no-resend")

// Device owns one descriptor of /dev/fuse with a mounted file system behind it. Its
// methods but Connect and Close are safe for concurrent use.
type Device struct {
	fd      int
	request []byte // the kernel's INIT
	reply   []byte // what it was told; nil before Connect
}

// Options of a mount.
type Options struct {
	AllowOther bool     // other users may use it
	Source     string   // what mount and df show as the source; "" is "ftfuse"
	Flags      []string // mount options that the kernel keeps: noexec, noatime, nodiratime, relatime, strictatime, sync, dirsync
}

// Mount mounts a file system on the directory point and returns its device. Root mounts by
// itself, which needs CAP_SYS_ADMIN, anybody else by the system's fusermount3. The kernel's
// INIT was read and waits for Connect.
func Mount(point string, o Options) (*Device, error) {
	mount := mountUser
	if os.Geteuid() == 0 {
		mount = mountRoot
	}
	fd, err := mount(point, o)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 64<<10) // at least FUSE_MIN_READ_BUFFER, 8 KiB
	n, err := readRetry(fd, b)
	if err == nil {
		err = checkInit(b[:n])
	}
	if err != nil {
		_ = Detach(point)
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%w on %s: read the kernel's first request: %w", ErrMount, point, err)
	}
	return &Device{fd: fd, request: append([]byte(nil), b[:n]...)}, nil
}

// Attach makes the device of a connection that another process negotiated, whose
// descriptor this process was handed as fd and which it then owns. saved is what State
// returned there. The kernel is told nothing. On an error fd stays the caller's.
func Attach(fd int, saved []byte) (*Device, error) {
	request, reply, err := decodeState(saved)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at descriptor %d of a connection to take over: %w", fd, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(st.Rdev) != 10 || unix.Minor(st.Rdev) != 229 {
		return nil, fmt.Errorf("%w: descriptor %d is not /dev/fuse", ErrState, fd)
	}
	unix.CloseOnExec(fd)
	return &Device{fd: fd, request: request, reply: reply}, nil
}

// FD returns the descriptor, which stays the Device's. It is close-on-exec.
func (d *Device) FD() int { return d.fd }

// Close closes the descriptor. The connection to the kernel ends with the last
// duplicate: the library's (fuse.Conn), a holder's.
func (d *Device) Close() error {
	if err := unix.Close(d.fd); err != nil {
		return fmt.Errorf("close /dev/fuse: %w", err)
	}
	return nil
}

// Passthrough reports whether the kernel may be told to serve files by itself. False
// before Connect.
func (d *Device) Passthrough() bool { return d.reply != nil && passes(d.reply) }

// MaxWrite returns the largest write that one request can bring, in bytes. 0 before
// Connect.
func (d *Device) MaxWrite() int {
	if d.reply == nil {
		return 0
	}
	return maxWrite(d.reply)
}

// Resend asks the kernel to give every request again that was read by whoever and not
// answered, with the bit Resent in its unique, in no particular order. It is for a
// process that has attached and does not read yet.
func (d *Device) Resend() error {
	b := make([]byte, outHeaderSize)
	ne.PutUint32(b, outHeaderSize)
	ne.PutUint32(b[outError:], notifyResend)
	_, err := unix.Write(d.fd, b)
	if fpNoResend.Inject() != nil {
		err = unix.EINVAL
	}
	if err != nil {
		return fmt.Errorf("ask the kernel for unanswered requests (FUSE_NOTIFY_RESEND, Linux 6.9): %w", err)
	}
	return nil
}

// Knows reports whether the kernel has an inode for a node. It makes it ask for the attributes again.
func (d *Device) Knows(node uint64) bool {
	b := make([]byte, outHeaderSize+24) // and fuse_notify_inval_inode_out: node, offset, length
	ne.PutUint32(b, uint32(len(b)))
	ne.PutUint32(b[outError:], notifyInode)
	ne.PutUint64(b[outHeaderSize:], node)
	ne.PutUint64(b[outHeaderSize+8:], ^uint64(0)) // -1: of no pages
	_, err := unix.Write(d.fd, b)
	return err == nil // else ENOENT
}

// OpenBacking registers the open regular file fd, which must be open for reading only,
// as a backing file and returns its id for RespondOpen and RespondCreate. fd may be
// closed then. The kernel opens the file again with the flags of each handle, by the
// credentials of the caller. Needs passthrough and CAP_SYS_ADMIN.
//
// The id belongs to the connection, not to the process: it stays valid for whoever
// attaches, until CloseBacking.
func (d *Device) OpenBacking(fd int) (int32, error) {
	arg := struct {
		fd      int32
		flags   uint32
		padding uint64
	}{fd: int32(fd)}
	id, err := ioctl(d.fd, ioctlOpen, uintptr(unsafe.Pointer(&arg)))
	if err != nil {
		return 0, fmt.Errorf("register a backing file (FUSE_DEV_IOC_BACKING_OPEN): %w", err)
	}
	return id, nil
}

// CloseBacking gives a backing id up. Handles that were opened with it keep the file.
func (d *Device) CloseBacking(id int32) error {
	if _, err := ioctl(d.fd, ioctlClose, uintptr(unsafe.Pointer(&id))); err != nil {
		return fmt.Errorf("give backing file %d up (FUSE_DEV_IOC_BACKING_CLOSE): %w", id, err)
	}
	return nil
}

func readRetry(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if err != unix.EINTR {
			return n, err
		}
	}
}
