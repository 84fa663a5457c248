package transport

import (
	"fmt"
	"io"
	"time"

	"ftfuse/internal/batch"
)

// read reads frames until the connection ends, and says why it did.
func (s *session) read() error {
	for {
		h, meta, err := s.frames.next()
		if err == io.EOF {
			return errNoBye
		}
		if err != nil {
			return err
		}
		switch h.kind {
		case typeAck:
			err = s.acked(meta)
		case typeRefuse:
			err = s.refused(meta)
		case typeFinal:
			err = parseSets(meta, func(lane batch.Lane, set batch.Ranges) { s.c.src.Final(lane, set.All()) })
		case typePing:
			var token uint64
			if token, err = parseToken(meta); err == nil {
				s.post(func(c *control) { c.pong, c.havePong = token, true })
			}
		case typePong:
			var token uint64
			if token, err = parseToken(meta); err == nil {
				rtt := time.Since(s.start) - time.Duration(token)
				s.c.update(func(st *ClientStats) { st.RTT = rtt })
			}
		case typeDrain:
			s.mu.Lock()
			s.peerDrains = true
			s.mu.Unlock()
			s.c.setState(StateDraining, nil)
			s.stopPull()
			s.c.flights.signal()
		case typeSkip:
			var lane batch.Lane
			var skip Skip
			if lane, skip, err = parseSkip(meta); err == nil {
				s.c.src.Skipped(lane, []Skip{skip})
			}
		case typeBye:
			bye, err := parseBye(meta)
			if err != nil {
				return err
			}
			return bye
		default:
			err = fmt.Errorf("%w: %v from a server", ErrFrame, h.kind)
		}
		if err != nil {
			return err
		}
	}
}

// acked ends flights and tells the Source.
func (s *session) acked(meta []byte) error {
	var seqs []uint64
	err := parseSets(meta, func(lane batch.Lane, set batch.Ranges) {
		seqs = s.c.flights.settle(lane, set, seqs)
	})
	for _, seq := range seqs {
		s.c.src.Acked(seq)
	}
	s.useful = true
	s.c.update(func(st *ClientStats) {
		st.Acked += uint64(len(seqs))
		st.LastAck = time.Now()
	})
	return err
}

// refused does what the verdict asks for.
func (s *session) refused(meta []byte) error {
	id, v, err := parseRefuse(meta)
	if err != nil {
		return err
	}
	fl := s.c.flights.find(id)
	if fl == nil {
		return nil
	}
	if v.Code == Recalled { // no peer says that: it means something on this side
		v.Code = TooLarge
	}
	switch {
	case v.Code == Busy:
		s.useful = false // wait longer from time to time
		s.c.probe.Store(true)
		return fmt.Errorf("%w: %v refused batch %v: %s", errBusy, s.peer, id, v.Text)
	case v.Code == BadCRC && !fl.badCRC:
		fl.badCRC = true // only this goroutine and its successors look at it
		s.useful = true
		return fmt.Errorf("%w: batch %v at %v: %s", errDamaged, id, s.peer, v.Text)
	}
	s.useful = true
	s.c.flights.drop(fl)
	s.surface(fl, v)
	return nil
}

// surface gives a refused batch back to the Source.
func (s *session) surface(fl *flight, v Verdict) {
	s.c.log.Error("batch refused; it stays in this node's queue", "peer", s.peer.String(), "batch", fl.b.ID.String(),
		"code", v.Code.String(), "reason", v.Text)
	s.c.update(func(st *ClientStats) { st.Refused++ })
	s.c.src.Refused(fl.seq, v)
}
