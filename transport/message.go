package transport

import (
	"encoding/binary"
	"fmt"

	"ftfuse/internal/batch"
)

const (
	maxText = 255 // longest string in HELLO, WELCOME, BYE and REFUSE, in bytes
	maxVia  = 64  // most nodes that a batch can have come through
)

// hello is HELLO and WELCOME: who one is and what one can take.
type hello struct {
	minVersion, maxVersion uint16 // WELCOME: both the version chosen
	node                   batch.Node
	maxData                uint32 // longest sealed batch one takes, in bytes
	window                 uint32 // most unacknowledged bytes one wants to be sent
	features               uint64
	host, role, product    string
}

func (m *hello) append(b []byte, kind Type) []byte {
	at := len(b)
	b = beginFrame(b)
	b = binary.LittleEndian.AppendUint16(b, m.minVersion)
	b = binary.LittleEndian.AppendUint16(b, m.maxVersion)
	b = append(b, m.node[:]...)
	b = binary.LittleEndian.AppendUint32(b, m.maxData)
	b = binary.LittleEndian.AppendUint32(b, m.window)
	b = binary.LittleEndian.AppendUint64(b, m.features)
	for _, s := range []string{m.host, m.role, m.product} {
		b = appendText(b, s)
	}
	return endFrame(b, at, kind, 0)
}

func parseHello(p []byte) (hello, error) {
	f := fields{p: p}
	var m hello
	m.minVersion = f.uint16()
	m.maxVersion = f.uint16()
	copy(m.node[:], f.bytes(batch.NodeSize))
	m.maxData = f.uint32()
	m.window = f.uint32()
	m.features = f.uint64()
	m.host, m.role, m.product = f.text(), f.text(), f.text()
	return m, f.err("HELLO or WELCOME")
}

// appendBatch appends the frame of s up to its data. last is a node to name behind
// s.Via, the sender itself.
func appendBatch(b []byte, s *batch.Sealed, last batch.Node) []byte {
	at := len(b)
	b = beginFrame(b)
	b = s.ID.Append(b)
	b = binary.LittleEndian.AppendUint32(b, s.CRC)
	b = binary.LittleEndian.AppendUint16(b, s.Flags)
	b = binary.LittleEndian.AppendUint32(b, s.Records)
	b = binary.LittleEndian.AppendUint64(b, s.Payload)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.Time))
	b = append(b, byte(len(s.Via)+1))
	for i := range s.Via {
		b = append(b, s.Via[i][:]...)
	}
	b = append(b, last[:]...)
	b = appendText(b, s.Host)
	return endFrame(b, at, typeBatch, len(s.Data))
}

// parseBatch returns the envelope; Data is still to come.
func parseBatch(p []byte) (batch.Sealed, error) {
	f := fields{p: p}
	var s batch.Sealed
	id, err := batch.ParseID(f.bytes(batch.IDSize))
	if err != nil {
		return s, fmt.Errorf("%w: BATCH: %w", ErrFrame, err)
	}
	s.ID = id
	s.CRC = f.uint32()
	s.Flags = f.uint16()
	s.Records = f.uint32()
	s.Payload = f.uint64()
	s.Time = int64(f.uint64())
	n := int(f.uint8())
	if n > maxVia {
		return s, fmt.Errorf("%w: BATCH %v came through %d nodes, at most %d are taken", ErrFrame, s.ID, n, maxVia)
	}
	if nodes := f.bytes(n * batch.NodeSize); len(nodes) > 0 {
		s.Via = make([]batch.Node, n)
		for i := range s.Via {
			copy(s.Via[i][:], nodes[i*batch.NodeSize:])
		}
	}
	s.Host = f.text()
	return s, f.err("BATCH")
}

// LaneRanges is a set of batch numbers of one lane.
type LaneRanges struct {
	Lane   batch.Lane
	Ranges batch.Ranges
}

// appendSets appends as many frames of kind (ACK or FINAL) as sets need, and empties
// sets.
func appendSets(b []byte, kind Type, sets map[batch.Lane]*batch.Ranges) []byte {
	at, open := len(b), false
	var part batch.Ranges
	for lane, set := range sets {
		all := set.All()
		for len(all) > 0 {
			// A range takes at most 20 bytes; a frame is ended while another full set fits.
			n := min(len(all), 1000)
			if open && len(b)-at+batch.LaneSize+10+20*n > maxMeta {
				b = endFrame(b, at, kind, 0)
				at, open = len(b), false
			}
			if !open {
				b, open = beginFrame(b), true
			}
			part = batch.Ranges{}
			for _, r := range all[:n] {
				part.AddRange(r)
			}
			b = part.Append(lane.Append(b))
			all = all[n:]
		}
		delete(sets, lane)
	}
	if open {
		b = endFrame(b, at, kind, 0)
	}
	return b
}

// parseSets calls fn for each lane of an ACK or FINAL.
func parseSets(p []byte, fn func(batch.Lane, batch.Ranges)) error {
	for len(p) > 0 {
		lane, err := batch.ParseLane(p)
		if err != nil {
			return fmt.Errorf("%w: ACK or FINAL: %w", ErrFrame, err)
		}
		set, rest, err := batch.ParseRanges(p[batch.LaneSize:])
		if err != nil {
			return fmt.Errorf("%w: ACK or FINAL: %w", ErrFrame, err)
		}
		fn(lane, set)
		p = rest
	}
	return nil
}

func appendRefuse(b []byte, id batch.ID, v Verdict) []byte {
	at := len(b)
	b = id.Append(beginFrame(b))
	b = binary.LittleEndian.AppendUint16(b, uint16(v.Code))
	return endFrame(appendText(b, v.Text), at, typeRefuse, 0)
}

func parseRefuse(p []byte) (batch.ID, Verdict, error) {
	f := fields{p: p}
	id, err := batch.ParseID(f.bytes(batch.IDSize))
	if err != nil {
		return id, Verdict{}, fmt.Errorf("%w: REFUSE: %w", ErrFrame, err)
	}
	v := Verdict{Code: Code(f.uint16()), Text: f.text()}
	if err := f.err("REFUSE"); err != nil {
		return id, v, err
	}
	if v.Code == Taken || v.Code == Duplicate { // they travel as ACK
		return id, v, fmt.Errorf("%w: REFUSE %v as %v", ErrFrame, id, v.Code)
	}
	return id, v, nil
}

// LaneHorizon announces that every batch of Lane with a number below Below is final:
// its source will never send it again.
type LaneHorizon struct {
	Lane  batch.Lane
	Below uint64
}

const horizonSize = batch.LaneSize + 8

// appendHorizons appends as many HORIZON frames as hs need.
func appendHorizons(b []byte, hs []LaneHorizon) []byte {
	for len(hs) > 0 {
		n := min(len(hs), maxMeta/horizonSize)
		at := len(b)
		b = beginFrame(b)
		for _, h := range hs[:n] {
			b = h.Lane.Append(b)
			b = binary.LittleEndian.AppendUint64(b, h.Below)
		}
		b = endFrame(b, at, typeHorizon, 0)
		hs = hs[n:]
	}
	return b
}

func parseHorizons(p []byte, fn func(LaneHorizon)) error {
	for len(p) > 0 {
		if len(p) < horizonSize {
			return fmt.Errorf("%w: HORIZON: %d bytes are left, want %d", ErrFrame, len(p), horizonSize)
		}
		lane, err := batch.ParseLane(p)
		if err != nil {
			return fmt.Errorf("%w: HORIZON: %w", ErrFrame, err)
		}
		fn(LaneHorizon{lane, binary.LittleEndian.Uint64(p[batch.LaneSize:])})
		p = p[horizonSize:]
	}
	return nil
}

// appendToken appends a PING or PONG.
func appendToken(b []byte, kind Type, token uint64) []byte {
	at := len(b)
	return endFrame(binary.LittleEndian.AppendUint64(beginFrame(b), token), at, kind, 0)
}

func parseToken(p []byte) (uint64, error) {
	f := fields{p: p}
	return f.uint64(), f.err("PING or PONG")
}

func appendBye(b []byte, code ByeCode, text string) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint16(beginFrame(b), uint16(code))
	return endFrame(appendText(b, text), at, typeBye, 0)
}

func parseBye(p []byte) (*ByeError, error) {
	f := fields{p: p}
	e := &ByeError{Code: ByeCode(f.uint16()), Text: f.text()}
	return e, f.err("BYE")
}

// appendText appends a length byte and s, cut to maxText.
func appendText(b []byte, s string) []byte {
	s = s[:min(len(s), maxText)]
	return append(append(b, byte(len(s))), s...)
}

// fields reads fixed fields from the front of p and remembers whether there were
// enough. Bytes behind the fields that are known are ignored: a later minor addition.
type fields struct {
	p     []byte
	short bool
}

func (f *fields) bytes(n int) []byte {
	if len(f.p) < n {
		f.short, f.p = true, nil
		return nil
	}
	b := f.p[:n]
	f.p = f.p[n:]
	return b
}

func (f *fields) uint8() uint8 {
	if b := f.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (f *fields) uint16() uint16 {
	if b := f.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (f *fields) uint32() uint32 {
	if b := f.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (f *fields) uint64() uint64 {
	if b := f.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (f *fields) text() string { return string(f.bytes(int(f.uint8()))) }

func (f *fields) err(what string) error {
	if f.short {
		return fmt.Errorf("%w: %s is cut short", ErrFrame, what)
	}
	return nil
}
