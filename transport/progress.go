package transport

import (
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// progressStep is how many bytes of batches must have gone over for it to count: enough that
// what TLS adds to heartbeats does not, and so few that every line on which the peer does
// not lose patience (paceLeast) gets there between two heartbeats.
const progressStep = 1 << 10

// progress watches how much of what a session wrote went over. A batch that takes a slow
// line half a minute is answered only then; its bytes say that it moves.
type progress struct {
	written atomic.Int64 // bytes of batches and all else
	other   atomic.Int64 // of these, those of no batch: a peer may answer heartbeats and take nothing
}

// watchProgress calls OnProgress whenever bytes of batches have gone over, until the
// connection ends.
func (s *session) watchProgress() {
	tick := time.NewTicker(s.c.t.heartbeat)
	defer tick.Stop()
	over := func() int64 {
		other := s.progress.other.Load() // first: what is written meanwhile is not to count
		return arrived(s.nc, s.progress.written.Load()) - other
	}
	seen := over() // the handshake
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		if now := over(); now >= seen+progressStep {
			seen = now
			s.c.o.OnProgress()
		}
	}
}

// arrived returns how many bytes the peer's kernel has, as far as this one's knows (tcp(7),
// TCP_INFO, tcpi_bytes_acked: since Linux 4.1); of another kind of connection, what was
// written.
func arrived(nc net.Conn, written int64) int64 {
	t := tcp(nc)
	if t == nil {
		return written
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return 0
	}
	acked := int64(0)
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			acked = int64(info.Bytes_acked)
		}
	})
	return acked
}
