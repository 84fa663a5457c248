package transport

import (
	"context"
	"fmt"
	"time"

	"ftfuse/internal/batch"
)

// sendFlight writes one batch, unless it was answered meanwhile.
func (s *session) sendFlight(fl *flight) error {
	b, send := s.c.flights.mark(fl, s.number)
	if !send {
		return nil
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.head = appendBatch(s.head[:0], &b, s.c.o.Identity.Node)
	if err := s.writeLocked(s.head, b.Data); err != nil {
		return err
	}
	s.c.update(func(st *ClientStats) {
		st.Sent++
		st.SentBytes += uint64(len(b.Data))
		if b.Flags&batch.FlagResent != 0 {
			st.Resent++
		}
	})
	return nil
}

// writeLocked writes p and data as one. It may block as long as the peer does not
// read; the reader watches over the peer meanwhile.
func (s *session) writeLocked(p []byte, data ...[]byte) error {
	s.vec = [2][]byte{p}
	s.bufs = s.vec[:1]
	if len(data) > 0 && len(data[0]) > 0 {
		s.vec[1] = data[0]
		s.bufs = s.vec[:2]
	} else {
		s.progress.other.Add(int64(len(p)))
	}
	n, err := s.bufs.WriteTo(s.nc)
	s.progress.written.Add(n)
	s.vec = [2][]byte{}
	if err != nil {
		s.broken = true
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		return fmt.Errorf("write to peer: %w", err)
	}
	return nil
}

// announce tells the horizons that moved since the last time, and what was dropped since.
func (s *session) announce() error {
	all, skips := s.c.src.Horizon(), s.c.src.Skips()
	s.wmu.Lock()
	defer s.wmu.Unlock()
	var moved []LaneHorizon
	for _, h := range all {
		if below, told := s.told[h.Lane]; !told || below != h.Below {
			moved = append(moved, h)
			s.told[h.Lane] = h.Below
			s.skips.Merge(h.Lane, h.Below)
		}
	}
	buf := appendHorizons(nil, moved)
	for _, l := range skips {
		if below := s.told[l.Lane]; below > 1 { // s.skips has forgotten what is final
			l.Skips = from(l.Skips, below)
		}
		buf = appendSkips(buf, l.Lane, s.skips.Add(l.Lane, l.Skips...))
	}
	if buf == nil {
		return nil
	}
	return s.writeLocked(buf)
}

// post changes what the control goroutine is to write, and wakes it.
func (s *session) post(change func(*control)) {
	s.mu.Lock()
	change(&s.ctl)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// control writes what is not a batch of the sending goroutine: heartbeats, their
// answers, horizons. It waits behind a batch that is being
// written, whose bytes tell the peer as much as a heartbeat.
func (s *session) control() {
	ticker := time.NewTicker(s.c.t.heartbeat)
	defer ticker.Stop()
	var buf []byte
	for {
		buf = buf[:0]
		tick := false
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
			tick = true
			buf = appendToken(buf, typePing, uint64(time.Since(s.start)))
		case <-s.wake:
		}
		s.mu.Lock()
		if s.ctl.havePong {
			buf = appendToken(buf, typePong, s.ctl.pong)
			s.ctl.havePong = false
		}
		s.mu.Unlock()
		s.wmu.Lock()
		err := s.writeLocked(buf)
		s.wmu.Unlock()
		if err == nil && tick {
			err = s.announce()
		}
		if err != nil {
			s.cancel(err)
			return
		}
	}
}
