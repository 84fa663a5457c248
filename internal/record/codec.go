package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"ftfuse/internal/batch"
	"ftfuse/internal/dirty"
)

// Codec says how everything behind a sealed batch's header is compressed.
type Codec uint8

// Codecs. A batch that a codec makes less than a sixteenth shorter has CodecNone,
// whatever its Builder was told.
const (
	CodecNone Codec = 0
	CodecS2   Codec = 1 // one s2 block
	CodecZstd Codec = 2 // zstd frames (RFC 8878) without a dictionary
)

// MaxRatio bounds what a reader expands: a sealed batch whose data and heads have n
// bytes has at least n / MaxRatio behind its header, zeros at the end if need be. (And
// header, data and heads are at most MaxBatch, compressed or not.)
const MaxRatio = 1024

// compressLeast is the length of data and heads below which compressing is not tried.
const compressLeast = 256

var codecNames = [...]string{CodecNone: "none", CodecS2: "s2", CodecZstd: "zstd"}

// ParseCodec returns the codec of that name: none, s2 or zstd.
func ParseCodec(name string) (Codec, error) {
	for c, n := range codecNames {
		if n == name {
			return Codec(c), nil
		}
	}
	return CodecNone, fmt.Errorf("codec %q, want none, s2 or zstd", name)
}

// String is the codec's name.
func (c Codec) String() string {
	if int(c) < len(codecNames) {
		return codecNames[c]
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

// One encoder, for one batch at a time, and a decoder for each CPU, made when they are
// first needed: they are large and safe for concurrent use.
var (
	zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
		return must(zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithEncoderCRC(false), zstd.WithWindowSize(MaxBatch), zstd.WithLowerEncoderMem(true)))
	})
	zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
		return must(zstd.NewReader(nil, zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(MaxBatch), zstd.WithDecoderMaxWindow(MaxBatch), zstd.WithDecodeAllCapLimit(true)))
	})
	scratch = sync.Pool{New: func() any { return new([]byte) }}
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // options that are constants
	}
	return v
}

// compress returns the sealed bytes of a batch whose uncompressed ones are data, its
// header not yet written, and completes h. It returns nil where that saves too little.
func compress(c Codec, h *header, data []byte) []byte {
	body := data[HeaderSize:]
	if c == CodecNone || len(body) < compressLeast {
		return nil
	}
	room := scratch.Get().(*[]byte)
	defer scratch.Put(room)
	var packed []byte
	switch c {
	case CodecS2:
		packed = s2.Encode(grown(room, s2.MaxEncodedLen(len(body))), body)
	case CodecZstd:
		packed = zstdEncoder().EncodeAll(body, grown(room, zstdEncoder().MaxEncodedSize(len(body)))[:0])
	}
	n := HeaderSize + sealedBody(len(packed), len(body))
	if len(packed) == 0 || n > len(data)-len(data)/16 {
		return nil
	}
	h.codec, h.packed = c, uint32(len(packed))
	sealed := dirty.Make(n)[:n:n]
	h.put(sealed)
	clear(sealed[HeaderSize+copy(sealed[HeaderSize:], packed):])
	return sealed
}

// grown returns the buffer of at least n bytes that b holds from now on.
func grown(b *[]byte, n int) []byte {
	if len(*b) < n {
		*b = make([]byte, n)
	}
	return *b
}

// sealedBody is how long everything behind the header is for so many compressed bytes
// that become raw ones.
func sealedBody(packed, raw int) int { return max(packed, (raw+MaxRatio-1)/MaxRatio) }

// expand returns the bytes that s has with CodecNone, in memory of its own, but for the
// header, which is as it was. h is the header of s, checked.
func expand(s batch.Sealed, h *header) ([]byte, error) {
	packed := s.Data[HeaderSize : HeaderSize+int(h.packed)]
	total := HeaderSize + int(h.payload) + int(h.heads)
	all := dirty.Make(total)[:total:total]
	copy(all, s.Data[:HeaderSize])
	n, err := unpack(h.codec, all[HeaderSize:], packed)
	if err == nil && n != total-HeaderSize {
		err = errors.New("another length")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: open batch %v: expand %d bytes of %v to %d: got %d: %w", ErrMalformed, s.ID, len(packed), h.codec, total-HeaderSize, n, err)
	}
	return all, nil
}

// unpack expands packed to dst, never more than that has room for, and returns how many
// bytes there were.
func unpack(c Codec, dst, packed []byte) (int, error) {
	if c == CodecZstd {
		out, err := zstdDecoder().DecodeAll(packed, dst[:0])
		return len(out), err
	}
	n, err := s2.DecodedLen(packed)
	if err != nil || n != len(dst) {
		return n, err
	}
	_, err = s2.Decode(dst, packed)
	return n, err
}

// put writes h into the first HeaderSize bytes of p.
func (h *header) put(p []byte) {
	copy(p, magic)
	binary.LittleEndian.PutUint16(p[4:], h.version)
	p[6], p[7] = byte(h.codec), 0
	h.id.Append(p[8:8])
	binary.LittleEndian.PutUint64(p[56:], uint64(h.time))
	binary.LittleEndian.PutUint64(p[64:], h.payload)
	binary.LittleEndian.PutUint32(p[72:], h.records)
	binary.LittleEndian.PutUint32(p[76:], h.heads)
	binary.LittleEndian.PutUint32(p[80:], h.packed)
	clear(p[84:HeaderSize])
}
