package kernel

import (
	"fmt"
	"os"
	"time"

	"bazil.org/fuse"
	"golang.org/x/sys/unix"
)

// The library has no words for backing files, and it drops the sticky bit of the
// attributes that it is given, with which the kernel decides who may remove a name
// (fs/namei.c, check_sticky). So these replies are made here: struct fuse_out_header,
// fuse_attr, fuse_attr_out, fuse_entry_out and fuse_open_out, 7.9 and later.
//
// Each method answers the request of h and gives its buffer back: h's request must not
// be used afterwards. Where no error is returned, it is nobody's concern that the kernel
// does not want the reply any more (ENOENT) or is gone, as with the library's own replies.

// RespondOpen answers OPEN with flags of Open... and, for OpenPassthrough, the id of the
// backing file. It returns an error where the kernel did not take the reply: ENOENT if
// the opener was aborted, so that no RELEASE of handle will come.
func (d *Device) RespondOpen(h *fuse.Header, handle uint64, flags uint32, backing int32) error {
	return d.send(h, appendOpen(newReply(h), handle, flags, backing))
}

// RespondCreate answers CREATE, as RespondOpen does OPEN.
func (d *Device) RespondCreate(h *fuse.Header, e *fuse.LookupResponse, handle uint64, flags uint32, backing int32) error {
	return d.send(h, appendOpen(appendEntry(newReply(h), e), handle, flags, backing))
}

// RespondAttr answers GETATTR or SETATTR with a, the sticky bit included.
func (d *Device) RespondAttr(h *fuse.Header, a *fuse.Attr) {
	b := newReply(h)
	b = ne.AppendUint64(b, uint64(a.Valid/time.Second))
	b = ne.AppendUint32(b, uint32(a.Valid%time.Second))
	b = ne.AppendUint32(b, 0)
	_ = d.send(h, appendAttr(b, a))
}

// RespondEntry answers LOOKUP, MKNOD or MKDIR with e, the sticky bit included.
func (d *Device) RespondEntry(h *fuse.Header, e *fuse.LookupResponse) {
	_ = d.send(h, appendEntry(newReply(h), e))
}

// Forgo gives the buffer of h's request back (a megabyte, see MaxWrite) without an
// answer, for a request that waits: what it has (names, data) must have been copied, and
// one of the methods here must answer a Header{ID: h.ID} in the end.
func Forgo(h *fuse.Header) fuse.Header {
	kept := fuse.Header{ID: h.ID, Node: h.Node, Uid: h.Uid, Gid: h.Gid, Pid: h.Pid}
	(&fuse.InterruptRequest{Header: *h}).Respond() // gives the buffer back, and says nothing to the kernel
	return kept
}

// RespondError answers any request that Forgo kept with an error; 0 is success without
// a content (RELEASE, FLUSH, locks).
func (d *Device) RespondError(id fuse.RequestID, errno unix.Errno) {
	b := newReply(&fuse.Header{ID: id})
	ne.PutUint32(b[outError:], uint32(-int32(errno)))
	_ = d.write(b)
}

// RespondWrite answers a WRITE that Forgo kept.
func (d *Device) RespondWrite(id fuse.RequestID, n int) {
	b := ne.AppendUint32(newReply(&fuse.Header{ID: id}), uint32(n))
	_ = d.write(ne.AppendUint32(b, 0))
}

// RespondRead answers a READ that Forgo kept with data.
func (d *Device) RespondRead(id fuse.RequestID, data []byte) {
	b := newReply(&fuse.Header{ID: id})
	ne.PutUint32(b, uint32(len(b)+len(data)))
	_, _ = unix.Writev(d.fd, [][]byte{b, data})
}

// newReply is a fuse_out_header whose length send fills in.
func newReply(h *fuse.Header) []byte {
	return ne.AppendUint64(make([]byte, outUnique, 192), uint64(h.ID))
}

func appendOpen(b []byte, handle uint64, flags uint32, backing int32) []byte {
	b = ne.AppendUint64(b, handle)
	b = ne.AppendUint32(b, flags)
	return ne.AppendUint32(b, uint32(backing))
}

func appendEntry(b []byte, e *fuse.LookupResponse) []byte {
	for _, v := range []uint64{uint64(e.Node), e.Generation, uint64(e.EntryValid / time.Second), uint64(e.Attr.Valid / time.Second)} {
		b = ne.AppendUint64(b, v)
	}
	for _, v := range []time.Duration{e.EntryValid, e.Attr.Valid} {
		b = ne.AppendUint32(b, uint32(v%time.Second))
	}
	return appendAttr(b, &e.Attr)
}

func appendAttr(b []byte, a *fuse.Attr) []byte {
	at := [3]time.Time{a.Atime, a.Mtime, a.Ctime}
	for _, v := range []uint64{a.Inode, a.Size, a.Blocks, uint64(at[0].Unix()), uint64(at[1].Unix()), uint64(at[2].Unix())} {
		b = ne.AppendUint64(b, v)
	}
	for _, t := range at {
		b = ne.AppendUint32(b, uint32(t.Nanosecond()))
	}
	for _, v := range []uint32{UnixMode(a.Mode), a.Nlink, a.Uid, a.Gid, a.Rdev, a.BlockSize, 0} {
		b = ne.AppendUint32(b, v)
	}
	return b
}

// UnixMode is st_mode of a regular file or a directory.
func UnixMode(m os.FileMode) uint32 {
	mode := uint32(m&os.ModePerm) | unix.S_IFREG
	if m.IsDir() {
		mode ^= unix.S_IFREG | unix.S_IFDIR
	}
	if m&os.ModeSetuid != 0 {
		mode |= unix.S_ISUID
	}
	if m&os.ModeSetgid != 0 {
		mode |= unix.S_ISGID
	}
	if m&os.ModeSticky != 0 {
		mode |= unix.S_ISVTX
	}
	return mode
}

func (d *Device) send(h *fuse.Header, b []byte) error {
	err := d.write(b)
	if h.Conn != nil { // else Forgo has done it
		(&fuse.InterruptRequest{Header: *h}).Respond() // gives the request's buffer back, and says nothing to the kernel
	}
	return err
}

func (d *Device) write(b []byte) error {
	ne.PutUint32(b, uint32(len(b)))
	if _, err := unix.Write(d.fd, b); err != nil {
		return fmt.Errorf("answer request %#x: %w", ne.Uint64(b[outUnique:]), err)
	}
	return nil
}
