// Package kernel is what ftfuse does with /dev/fuse beyond what bazil.org/fuse does: it
// mounts by itself, negotiates FUSE passthrough and writes of 1 MiB, takes a living
// connection over from another process, and answers what the library has no words for.
//
//	              Mount / Attach                      Connect
//	/dev/fuse ◄──────────────────── Device ──────────────────────────► fuse.Conn
//	    │ INIT ──► saved, replayed to the library over a socketpair ──►  its INIT reply
//	    ◄───────── the reply, rewritten (not after Attach) ◄──────────────────┘
//	                                  then dup3 of the descriptor over the library's socket
//
// The library always gets the socketpair: it execs fusermount3, which it finds first on
// a private PATH as a link to this binary (MaybeHelper), and takes over the descriptor
// that this helper hands it (the _FUSE_COMMFD protocol of libfuse).
//
// Structures and numbers are those of the kernel's include/uapi/linux/fuse.h, 7.43; what
// the kernel does with them is told from fs/fuse of Linux 6.18.
package kernel
