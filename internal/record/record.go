// Package record encodes and decodes the sealed bytes of a batch: what programs
// wrote, with who wrote it, where and when.
//
// A sealed batch is a fixed header, the bytes of all records one behind the other,
// and behind them the heads, which cut those bytes into records and give each its
// attributes (docs/protocol.md, "Sealed batch", describes every byte). Attributes
// stand once per record, which is one write(2); who wrote and where (host, path,
// pid, uid, gid) stands once per batch and is then named by number. Because the
// bytes of neighbouring records touch, a reader that wants nothing but the bytes can
// write a whole batch out with a few large writes. Data and heads may be compressed
// together (Codec); the header never is.
//
// The sealed bytes carry no checksum of their own: Sealed.CRC covers all of them and
// is checked by whoever took the batch from a wire or a disk, so that a relay can
// verify a batch without this package.
package record

import (
	"errors"

	"ftfuse/internal/batch"
)

// Sizes, in bytes, and limits of the format.
const (
	Version    = 2       // the newest format version; this package reads all of them
	versionOld = 1       // without processes; written where no record has one, so that older nodes read it
	HeaderSize = 96      // the fixed header
	MaxBatch   = 4 << 20 // largest len(Sealed.Data)
	MaxString  = 1 << 16 // longest string, in bytes: a path; hosts have batch.MaxHost, what is of a process MaxProcess
	MaxProcess = 4 << 10 // longest Exe or Cgroup, in bytes
	MaxWriters = 1 << 16 // most different (host, path, pid, uid, gid, process) in one batch

	// MaxRecord is the longest record, in bytes, that a batch of its own is sure to
	// take. Longer ones travel in pieces.
	MaxRecord = MaxBatch - HeaderSize - 2*MaxString - 2*MaxProcess - newWriterBound - headBound
)

// Errors of the reader, in what a receiver does about them.
var (
	// ErrVersion is returned for a format version, a codec or a flag that this build
	// does not know. The batch may be good: refuse it with that word, let the sender
	// keep it.
	ErrVersion = errors.New("record: format version not known")
	// ErrMalformed is returned for sealed bytes that can never be read. With a good
	// CRC it was sealed that way: a dead letter.
	ErrMalformed = errors.New("record: malformed batch")
)

// Flags of a record.
const (
	Unterminated uint16 = 1 << iota // line mode: the bytes end without the end of their line
	Break                           // what stands before in the output was another writer's: end its line first
	PieceFirst                      // the first piece of a line longer than max_line
	PieceMiddle                     // a piece in the middle
	PieceLast                       // the last piece: its line ends here
	Recovered                       // the bytes are exact; pid and time are not known
	Offline                         // written while nothing was mounted
	Overwrite                       // written over bytes that had been captured before
	Binary                          // binary mode: the bytes are not lines
	Opener                          // pid, uid and gid are those of who opened the file, the newest of them; time is when the bytes were captured
	Several                         // several processes had the file open for writing: with Opener the bytes may be any one's

	knownFlags = Unterminated | Break | PieceFirst | PieceMiddle | PieceLast | Recovered | Offline | Overwrite | Binary | Opener | Several
)

// Attr is what is known of one write.
type Attr struct {
	Host, Path    string // Path as the handle was opened, below the mount point, no leading slash
	PID, UID, GID uint32
	Time          int64 // Unix nanoseconds of the source's clock; for people, never for order
	Flags         uint16
	Process       *Process // nil where nobody asked; see there
}

// Process is what is known of a process beside its pid, where a rule asks for it. It is never
// changed once it is in an Attr, so that pointers may be shared and compared.
type Process struct {
	Exe    string // path of the program, "" where that was not asked for or could not be found out
	Cgroup string // path in the hierarchy of control groups, likewise
}

// Exe is the program of the process that wrote, "" if it is not known.
func (a *Attr) Exe() string {
	if a.Process == nil {
		return ""
	}
	return a.Process.Exe
}

// Cgroup is the control group of the process that wrote, "" if it is not known.
func (a *Attr) Cgroup() string {
	if a.Process == nil {
		return ""
	}
	return a.Process.Cgroup
}

// Record is one record as a Reader gives it. Data aliases the batch's sealed bytes,
// as Reader.Bytes has them, beginning at Off: it is never to be written to, and stays good
// as long as they do.
type Record struct {
	Attr
	Data []byte
	Off  int
}

// A head's first byte.
const (
	ctlWriter  = 0x03 // the writer: one of the four below
	ctlSame    = 0x00 // that of the record before
	ctlKnown   = 0x01 // its number follows
	ctlNew     = 0x02 // its definition follows; it gets the next number
	ctlNewProc = 0x03 // its definition with a process; version 2
	ctlFlags   = 0x04 // flags follow (absent: 0)
	ctlLen     = 0x08 // the length follows (absent: that of the record before)
	ctlTime    = 0x10 // the time follows, as a difference (absent: that of the record before)
	ctlAll     = 0x1f
)

const (
	magic          = "ftfb"
	headBound      = 32 // a head without the definition of a writer is never longer
	newWriterBound = 60 // nor the definition without its strings
)

// header is the fixed header in memory.
type header struct {
	version uint16
	codec   Codec
	id      batch.ID
	time    int64
	records uint32
	heads   uint32 // length of the heads, uncompressed
	payload uint64 // length of the data, uncompressed
	packed  uint32 // length of both, compressed; 0 with CodecNone
}
