package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"ftfuse/internal/batch"
)

// Type says what a frame carries.
type Type uint8

// The frames of docs/protocol.md, "Frames".
const (
	typeHello   Type = 1
	typeWelcome Type = 2
	typeBatch   Type = 3
	typeAck     Type = 4
	typeFinal   Type = 5
	typeRefuse  Type = 6
	typeHorizon Type = 7
	typeSkip    Type = 8
	typePing    Type = 9
	typePong    Type = 10
	typeDrain   Type = 11
	typeBye     Type = 12
)

var typeNames = [...]string{
	"frame 0", "HELLO", "WELCOME", "BATCH", "ACK", "FINAL", "REFUSE",
	"HORIZON", "SKIP", "PING", "PONG", "DRAIN", "BYE",
}

// String is the name that docs/protocol.md uses.
func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return fmt.Sprintf("frame %d", uint8(t))
}

// Sizes, in bytes.
const (
	frameHeaderSize = 20
	maxMeta         = 64 << 10 // of any frame's fields
	maxEarlyMeta    = 4 << 10  // of a frame before the handshake is done
	headerVersion   = 1        // of the 20 bytes in front of every frame
)

// ErrFrame is returned for bytes from a peer that are no frame of this protocol: the
// connection is of no use any more.
var ErrFrame = errors.New("transport: malformed frame")

// errTooLarge is the part of ErrFrame that has a BYE code of its own.
var errTooLarge = fmt.Errorf("%w: too large", ErrFrame)

// errHeaderVersion is the part of ErrFrame for a header of another protocol version.
var errHeaderVersion = fmt.Errorf("%w: header version not known", ErrFrame)

// frameHeader stands in front of every frame.
type frameHeader struct {
	kind    Type
	meta    uint32 // length of the fields
	data    uint32 // length of the sealed bytes behind them; BATCH only
	metaCRC uint32
}

// put writes h into the 20 bytes of p.
func (h frameHeader) put(p []byte) {
	p[0], p[1], p[2], p[3] = 'F', 'T', headerVersion, byte(h.kind)
	binary.LittleEndian.PutUint32(p[4:], h.meta)
	binary.LittleEndian.PutUint32(p[8:], h.data)
	binary.LittleEndian.PutUint32(p[12:], h.metaCRC)
	binary.LittleEndian.PutUint32(p[16:], batch.Checksum(p[:16]))
}

// limits are the longest meta and data that are read; checked before anything is
// allocated for them.
type limits struct{ meta, data uint32 }

// parseFrameHeader reads 20 bytes and checks them against lim.
func parseFrameHeader(p []byte, lim limits) (frameHeader, error) {
	h := frameHeader{
		kind:    Type(p[3]),
		meta:    binary.LittleEndian.Uint32(p[4:]),
		data:    binary.LittleEndian.Uint32(p[8:]),
		metaCRC: binary.LittleEndian.Uint32(p[12:]),
	}
	switch {
	case p[0] != 'F' || p[1] != 'T':
		return h, fmt.Errorf("%w: begins with % x, want \"FT\"; is this a ftfuse port?", ErrFrame, p[:2])
	case batch.Checksum(p[:16]) != binary.LittleEndian.Uint32(p[16:]):
		return h, fmt.Errorf("%w: header % x fails its CRC", ErrFrame, p[:frameHeaderSize])
	case p[2] != headerVersion:
		return h, fmt.Errorf("%w: version %d, want %d", errHeaderVersion, p[2], headerVersion)
	case h.meta > lim.meta:
		return h, fmt.Errorf("%w: %v with fields of %d bytes, at most %d are taken here", errTooLarge, h.kind, h.meta, lim.meta)
	case h.data > 0 && h.kind != typeBatch:
		return h, fmt.Errorf("%w: %v with %d bytes of data", ErrFrame, h.kind, h.data)
	case h.data > lim.data:
		return h, fmt.Errorf("%w: batch of %d bytes, at most %d are taken here", errTooLarge, h.data, lim.data)
	}
	return h, nil
}

// beginFrame appends room for a header to b; endFrame fills it in.
func beginFrame(b []byte) []byte { return append(b, make([]byte, frameHeaderSize)...) }

// endFrame fills in the header of the frame that begins at b[at:] and whose fields
// end with b; data is the length of what will follow.
func endFrame(b []byte, at int, kind Type, data int) []byte {
	meta := b[at+frameHeaderSize:]
	frameHeader{kind: kind, meta: uint32(len(meta)), data: uint32(data), metaCRC: batch.Checksum(meta)}.put(b[at:])
	return b
}

// appendEmpty appends a frame without fields.
func appendEmpty(b []byte, kind Type) []byte {
	at := len(b)
	return endFrame(beginFrame(b), at, kind, 0)
}

// frameReader reads frames from r. Fields are read into a buffer that the next frame
// overwrites.
type frameReader struct {
	r    io.Reader
	lim  limits
	head [frameHeaderSize]byte
	meta []byte
	pace *pace
}

// next reads a header and the fields behind it. The data, if any, are still to be
// read with fill. A clean end between two frames is io.EOF.
func (f *frameReader) next() (frameHeader, []byte, error) {
	f.pace.stop()
	if _, err := io.ReadFull(f.r, f.head[:1]); err != nil {
		return frameHeader{}, nil, err
	}
	f.pace.start()
	if _, err := io.ReadFull(f.r, f.head[1:]); err != nil {
		return frameHeader{}, nil, unexpected(err)
	}
	h, err := parseFrameHeader(f.head[:], f.lim)
	if err != nil {
		return h, nil, err
	}
	if cap(f.meta) < int(h.meta) || cap(f.meta) > 4096 && h.meta < 1024 {
		f.meta = make([]byte, max(int(h.meta), 256))
	}
	meta := f.meta[:h.meta]
	if _, err := io.ReadFull(f.r, meta); err != nil {
		return h, nil, unexpected(err)
	}
	if batch.Checksum(meta) != h.metaCRC {
		return h, nil, fmt.Errorf("%w: fields of %v fail their CRC", ErrFrame, h.kind)
	}
	return h, meta, nil
}

// sumEvery is how much is read before it is checksummed: it is still in the processor's
// cache then. Less is more system calls and more waking up: with 128 KiB a GB cost 0.1 s
// of CPU more.
const sumEvery = 512 << 10

// fill reads all of p, data of a batch, and returns crc continued over it.
func (f *frameReader) fill(p []byte, crc uint32) (uint32, error) {
	for len(p) > 0 {
		n, err := f.r.Read(p[:min(len(p), sumEvery)])
		crc = batch.UpdateChecksum(crc, p[:n])
		if p = p[n:]; err != nil && len(p) > 0 {
			return 0, unexpected(err)
		}
	}
	return crc, nil
}

// unexpected makes an end inside a frame what it is.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
