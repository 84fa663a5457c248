package kernel

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Sizes and offsets of struct fuse_in_header with fuse_init_in, and of
// fuse_out_header with fuse_init_out.
const (
	inHeaderSize = 40
	inOpcode     = 4
	inUnique     = 8
	inFlags      = inHeaderSize + 12
	inFlags2     = inHeaderSize + 16
	initInMin    = inHeaderSize + 16 // up to 7.35
	initInMax    = inHeaderSize + 64

	outHeaderSize  = 16
	outError       = 4
	outUnique      = 8
	outMinor       = outHeaderSize + 4
	outFlags       = outHeaderSize + 12
	outMaxWrite    = outHeaderSize + 20
	outMaxPages    = outHeaderSize + 28
	outFlags2      = outHeaderSize + 32
	outStackDepth  = outHeaderSize + 36
	outTimeout     = outHeaderSize + 40
	initOutSize    = outHeaderSize + 64
	initOutShort   = outHeaderSize + 24 // up to 7.22
	opInit         = 26
	notifyInode    = 2 // FUSE_NOTIFY_INVAL_INODE
	notifyResend   = 7 // FUSE_NOTIFY_RESEND, 7.40
	ioctlOpen      = 0x4010e501
	ioctlClose     = 0x4004e502
	flagAutoInval  = 1 << 12 // FUSE_AUTO_INVAL_DATA
	flagMaxPages   = 1 << 22
	flagExt        = 1 << 30 // FUSE_INIT_EXT: flags2 counts
	flag2Pass      = 1 << 5  // FUSE_PASSTHROUGH, bit 37
	flag2Timeout   = 1 << 10 // FUSE_REQUEST_TIMEOUT, bit 42
	longestTimeout = 1<<16 - 1
)

// Flags of a reply to OPEN or CREATE (FOPEN_*).
const (
	OpenDirectIO    = 1 << 0 // every read and write goes to the daemon
	OpenPassthrough = 1 << 7 // the kernel serves the file from its backing file
)

// Resent is the bit of a request's unique that says that it was read before, by a
// process that may or may not have acted on it (FUSE_UNIQUE_RESEND).
const Resent = 1 << 63

// smallWrite is the largest write of kernels before 4.20, which have no max_pages.
const smallWrite = 128 << 10

// pages of the largest write: one more than MaxWrite has, for a buffer that is not
// aligned. Kernels cut that to fs.fuse.max_pages_limit, by default 256.
const writePages = MaxWrite/4096 + 1

var ne = binary.NativeEndian

// checkInit reports whether b is a whole INIT request.
func checkInit(b []byte) error {
	switch {
	case len(b) < initInMin || len(b) > initInMax:
		return fmt.Errorf("an INIT request of %d bytes, want %d to %d", len(b), initInMin, initInMax)
	case ne.Uint32(b) != uint32(len(b)):
		return fmt.Errorf("an INIT request of %d bytes that says %d", len(b), ne.Uint32(b))
	case ne.Uint32(b[inOpcode:]) != opInit:
		return fmt.Errorf("a request with opcode %d where INIT (%d) must be first", ne.Uint32(b[inOpcode:]), opInit)
	}
	return nil
}

// checkReply reports whether b is a good reply to the INIT request req.
func checkReply(b, req []byte) error {
	switch {
	case len(b) < initOutShort || len(b) > initOutSize:
		return fmt.Errorf("an INIT reply of %d bytes, want %d to %d", len(b), initOutShort, initOutSize)
	case ne.Uint32(b) != uint32(len(b)):
		return fmt.Errorf("an INIT reply of %d bytes that says %d", len(b), ne.Uint32(b))
	case ne.Uint32(b[outError:]) != 0:
		return fmt.Errorf("an INIT reply with error %d", int32(ne.Uint32(b[outError:])))
	case ne.Uint64(b[outUnique:]) != ne.Uint64(req[inUnique:]):
		return fmt.Errorf("an INIT reply to another request")
	}
	return nil
}

// offered returns the kernel's flags2 of an INIT request: bits 32 to 63.
func offered(req []byte) uint32 {
	if len(req) < inFlags2+4 || ne.Uint32(req[inFlags:])&flagExt == 0 {
		return 0
	}
	return ne.Uint32(req[inFlags2:])
}

// rewrite makes of the library's reply to the INIT request req what the kernel gets:
// the largest write, passthrough if pass, and no timeout of requests but where the
// administrator set the largest.
func rewrite(req, reply []byte, pass bool) []byte {
	out := append(make([]byte, 0, initOutSize), reply...)
	if len(out) < initOutSize && ne.Uint32(out[outMinor:]) < 23 {
		return out
	}
	out = out[:initOutSize]
	flags, flags2 := ne.Uint32(out[outFlags:]), uint32(0)
	if ne.Uint32(req[inFlags:])&flagMaxPages != 0 {
		flags |= flagMaxPages
		ne.PutUint16(out[outMaxPages:], writePages)
		ne.PutUint32(out[outMaxWrite:], MaxWrite)
	}
	// sendfile(2) and splice(2) read by the page cache, also of a file that is direct I/O:
	// what is there goes when the file changed (fs/fuse/inode.c, fuse_change_attributes).
	flags |= ne.Uint32(req[inFlags:]) & flagAutoInval
	if pass && offered(req)&flag2Pass != 0 {
		flags2 |= flag2Pass
		// The backing file lies on a file system that is not stacked itself (fs/fuse/inode.c,
		// process_init_reply; fs/fuse/passthrough.c).
		ne.PutUint32(out[outStackDepth:], 1)
	}
	if offered(req)&flag2Timeout != 0 && sysctl("default_request_timeout") != 0 {
		// A write that waits for a full queue must not end the connection.
		flags2 |= flag2Timeout
		ne.PutUint16(out[outTimeout:], longestTimeout)
	}
	if flags2 != 0 {
		flags |= flagExt
		ne.PutUint32(out[outFlags2:], flags2)
	}
	ne.PutUint32(out[outFlags:], flags)
	ne.PutUint32(out, initOutSize)
	return out
}

// maxWrite is what an INIT reply allows for one write.
func maxWrite(reply []byte) int {
	n := int(ne.Uint32(reply[outMaxWrite:]))
	if ne.Uint32(reply[outFlags:])&flagMaxPages == 0 {
		n = min(n, smallWrite)
	}
	return n
}

// passes reports whether an INIT reply has passthrough.
func passes(reply []byte) bool {
	return len(reply) >= initOutSize && ne.Uint32(reply[outFlags:])&flagExt != 0 &&
		ne.Uint32(reply[outFlags2:])&flag2Pass != 0
}

// replay is the INIT request req as it must look to the library of a process that takes
// a connection over: it offers what was agreed on with reply, and no more.
func replay(req, reply []byte) []byte {
	out := append([]byte(nil), req...)
	ne.PutUint32(out[inFlags:], ne.Uint32(req[inFlags:])&ne.Uint32(reply[outFlags:]))
	return out
}

func ioctl(fd int, request uintptr, arg uintptr) (int32, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if errno != 0 {
		return 0, errno
	}
	return int32(r), nil
}
