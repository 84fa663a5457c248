// Package batch holds the names that every role, the queue and the transport
// share: who made a batch (Origin, Epoch), which numbered sequence it belongs to
// (Lane), which batch it is (ID), and the sealed batch itself as opaque bytes with
// the envelope that travels beside them (Sealed).
//
// It is a leaf: it imports nothing of ftfuse. The encoding of the sealed bytes is
// internal/record's; queue and transport never look inside them.
package batch

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
)

// Sizes, in bytes, of the fixed binary forms (docs/protocol.md, "Names").
const (
	LaneSize = 40 // origin 16, epoch counter 8, epoch random 8, route 4, bucket 1, zero 3
	IDSize   = LaneSize + 8
	NodeSize = 16
)

// MaxHost is the longest Sealed.Host, in bytes.
const MaxHost = 255

// MaxBuckets is the number of hash buckets a lane can name (0 to 15).
const MaxBuckets = 16

// Errors of the parsers in this package.
var (
	// ErrShort is returned for a binary name that is shorter than its fixed size.
	ErrShort = errors.New("batch: name is cut short")
	// ErrName is returned for a name that cannot be: a bucket above 15, a reserved
	// byte that is not zero, a batch number 0.
	ErrName = errors.New("batch: malformed name")
)

// Origin is the 128 random bits drawn when a mount's queue is made.
type Origin [16]byte

// Node names one role's state directory on one host for ever: 128 random bits drawn
// when its queue is made. A mount's node id is its origin.
type Node [16]byte

// Epoch is the counter that a mount raises and stores at every start, followed by 64
// fresh random bits, so that a cloned or restored state never shares an epoch.
type Epoch struct {
	Counter uint64
	Random  uint64
}

// Lane is one densely numbered sequence of batches. It is comparable and can be a
// map key.
type Lane struct {
	Origin Origin
	Epoch  Epoch
	Route  uint32
	Bucket uint8
}

// ID names one batch for ever: N counts from 1 in each lane. An ID never names two
// contents.
type ID struct {
	Lane Lane
	N    uint64
}

// Sealed is an immutable sealed batch with its envelope.
//
// Data is opaque here. Whoever holds a Sealed may read Data and Via and must never
// write to them; they may be shared between goroutines.
type Sealed struct {
	ID      ID
	CRC     uint32 // CRC-32C (Castagnoli) of the whole of Data
	Flags   uint16 // see the Flag constants; of this copy, not of the content
	Records uint32 // records inside, for counting losses without decoding
	Payload uint64 // bytes that programs wrote, before encoding and compression
	Time    int64  // when it was sealed, Unix nanoseconds of the source's clock; for age, never for order
	Via     []Node // the nodes this copy came through, oldest first
	Host    string // name of the host whose mount sealed it, at most MaxHost bytes
	Data    []byte
}

// Flags of one copy of a batch.
const (
	// FlagResent marks a copy that was sent before, to this or another destination,
	// and was not acknowledged there.
	FlagResent uint16 = 1 << 0
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum returns the CRC-32C that Sealed.CRC holds for data.
func Checksum(data []byte) uint32 { return crc32.Checksum(data, castagnoli) }

// UpdateChecksum returns the Checksum of what crc is the Checksum of, with data behind it.
func UpdateChecksum(crc uint32, data []byte) uint32 { return crc32.Update(crc, castagnoli, data) }

// Append appends the fixed 40-byte form of l.
func (l Lane) Append(b []byte) []byte {
	b = append(b, l.Origin[:]...)
	b = binary.LittleEndian.AppendUint64(b, l.Epoch.Counter)
	b = binary.LittleEndian.AppendUint64(b, l.Epoch.Random)
	b = binary.LittleEndian.AppendUint32(b, l.Route)
	return append(b, l.Bucket, 0, 0, 0)
}

// ParseLane reads the fixed form of a lane from the front of b.
func ParseLane(b []byte) (Lane, error) {
	var l Lane
	if len(b) < LaneSize {
		return l, fmt.Errorf("%w: lane of %d bytes, want %d", ErrShort, len(b), LaneSize)
	}
	copy(l.Origin[:], b)
	l.Epoch.Counter = binary.LittleEndian.Uint64(b[16:])
	l.Epoch.Random = binary.LittleEndian.Uint64(b[24:])
	l.Route = binary.LittleEndian.Uint32(b[32:])
	l.Bucket = b[36]
	if l.Bucket >= MaxBuckets || b[37] != 0 || b[38] != 0 || b[39] != 0 {
		return l, fmt.Errorf("%w: lane ends in % x, want a bucket below %d and three zeros", ErrName, b[36:40], MaxBuckets)
	}
	return l, nil
}

// Append appends the fixed 48-byte form of id.
func (id ID) Append(b []byte) []byte {
	return binary.LittleEndian.AppendUint64(id.Lane.Append(b), id.N)
}

// ParseID reads the fixed form of an id from the front of b.
func ParseID(b []byte) (ID, error) {
	l, err := ParseLane(b)
	if err != nil {
		return ID{}, err
	}
	if len(b) < IDSize {
		return ID{}, fmt.Errorf("%w: id of %d bytes, want %d", ErrShort, len(b), IDSize)
	}
	id := ID{Lane: l, N: binary.LittleEndian.Uint64(b[LaneSize:])}
	if id.N == 0 {
		return ID{}, fmt.Errorf("%w: batch number 0, numbers begin at 1", ErrName)
	}
	return id, nil
}

// String is origin/counter-random/route/bucket, in hexadecimal but for counter,
// route and bucket.
func (l Lane) String() string {
	return fmt.Sprintf("%x/%d-%016x/%d/%d", l.Origin[:], l.Epoch.Counter, l.Epoch.Random, l.Route, l.Bucket)
}

// String is the lane's text, a slash and the number.
func (id ID) String() string { return id.Lane.String() + "/" + strconv.FormatUint(id.N, 10) }

// String is the 32 hexadecimal digits of n.
func (n Node) String() string { return hex.EncodeToString(n[:]) }
