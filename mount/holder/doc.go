// Package holder keeps a mount up while the process that serves it dies, is restarted
// or is replaced.
//
//	operator, systemd ──signals──▶ holder ◀──holder.sock── ftfuse mount --handover
//	                               │   ▲
//	    go, stop, leave, ping      │   │  hello, keep, ready, failed, unmounted, pong
//	          (SEQPACKET, JSON)    ▼   │  (/dev/fuse as SCM_RIGHTS)
//	                              worker ◀──worker.sock── worker of the next holder
//
// [Run] is the holder: it starts workers (this binary with the same command line), keeps
// a descriptor of their connection to the kernel and what is needed to take it over, and
// starts another worker when one dies. [Link] is the worker's side. A worker whose holder
// died goes on serving and lets the next one adopt the connection ([Offer], [Adopt]).
//
// The holder opens nothing below its mount point and never asks the file system there
// for anything: with no worker alive it would wait for itself. What it knows of the mount
// it reads from /proc/self/mountinfo.
//
// The package knows nothing of FUSE or of ftfuse's configuration: a connection is a
// descriptor and bytes that only workers understand.
package holder
