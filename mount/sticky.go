package mount

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"time"

	"bazil.org/fuse"
	"golang.org/x/sys/unix"
)

// The library drops the sticky bit of the attributes that it is given, with which the
// kernel decides who may remove a name (fs/namei.c, check_sticky). So what has that bit
// is answered here, in the kernel's own words, on a duplicate of the connection's
// descriptor. The formats are struct fuse_out_header, fuse_attr, fuse_attr_out and
// fuse_entry_out of include/uapi/linux/fuse.h, 7.9 and later.

// rawConn is a duplicate of a connection's descriptor. Without one (-1) the sticky bit is
// stored and not shown.
type rawConn struct{ fd int }

// newestFUSE returns a duplicate of the descriptor of /dev/fuse that this process has
// got since before was taken.
func newestFUSE(before map[int]bool) (rawConn, error) {
	for fd := range fuseDescriptors() {
		if before[fd] {
			continue
		}
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return rawConn{-1}, fmt.Errorf("duplicate the connection's descriptor: %w", err)
		}
		return rawConn{dup}, nil
	}
	return rawConn{-1}, fmt.Errorf("find the connection's descriptor in /proc/self/fd: %w", os.ErrNotExist)
}

func fuseDescriptors() map[int]bool {
	fds := map[int]bool{}
	list, _ := os.ReadDir("/proc/self/fd")
	for _, e := range list {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == "/dev/fuse" {
			fd, _ := strconv.Atoi(e.Name())
			fds[fd] = true
		}
	}
	return fds
}

// close ends the duplicate. Nothing may be answered after it.
func (c rawConn) close() {
	if c.fd >= 0 {
		_ = unix.Close(c.fd)
	}
}

// attr answers r with a, and reports whether it did: if a has the sticky bit.
func (c rawConn) attr(r *fuse.Header, a *fuse.Attr) bool {
	if a.Mode&os.ModeSticky == 0 || c.fd < 0 {
		return false
	}
	b := outHeader(r)
	b = binary.NativeEndian.AppendUint64(b, uint64(a.Valid/time.Second))
	b = binary.NativeEndian.AppendUint32(b, uint32(a.Valid%time.Second))
	b = binary.NativeEndian.AppendUint32(b, 0)
	c.send(r, appendAttr(b, a))
	return true
}

// entry answers r with e, and reports whether it did: if its attributes have the sticky
// bit.
func (c rawConn) entry(r *fuse.Header, e *fuse.LookupResponse) bool {
	if e.Attr.Mode&os.ModeSticky == 0 || c.fd < 0 {
		return false
	}
	b := outHeader(r)
	for _, v := range []uint64{uint64(e.Node), e.Generation, uint64(e.EntryValid / time.Second), uint64(e.Attr.Valid / time.Second)} {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	for _, v := range []time.Duration{e.EntryValid, e.Attr.Valid} {
		b = binary.NativeEndian.AppendUint32(b, uint32(v%time.Second))
	}
	c.send(r, appendAttr(b, &e.Attr))
	return true
}

// outHeader is a fuse_out_header without its length.
func outHeader(r *fuse.Header) []byte {
	return binary.NativeEndian.AppendUint64(make([]byte, 8, 160), uint64(r.ID))
}

func appendAttr(b []byte, a *fuse.Attr) []byte {
	n := binary.NativeEndian
	at := []time.Time{a.Atime, a.Mtime, a.Ctime}
	for _, v := range []uint64{a.Inode, a.Size, a.Blocks, uint64(at[0].Unix()), uint64(at[1].Unix()), uint64(at[2].Unix())} {
		b = n.AppendUint64(b, v)
	}
	for _, t := range at {
		b = n.AppendUint32(b, uint32(t.Nanosecond()))
	}
	kind := uint32(unix.S_IFREG)
	if a.Mode.IsDir() {
		kind = unix.S_IFDIR
	}
	for _, v := range []uint32{kind | unixMode(a.Mode), a.Nlink, a.Uid, a.Gid, a.Rdev, a.BlockSize, 0} {
		b = n.AppendUint32(b, v)
	}
	return b
}

// send writes a reply. That the kernel does not want it any more (ENOENT) or is gone is
// nobody's concern, as with the library's own replies.
func (c rawConn) send(r *fuse.Header, b []byte) {
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	_, _ = unix.Write(c.fd, b)
	(&fuse.InterruptRequest{Header: *r}).Respond() // gives the request's buffer back, and says nothing to the kernel
}
