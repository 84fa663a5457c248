package capture

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

// Keys in the queue's room (docs/protocol.md has every byte). Numbers in keys
// are 16 hexadecimal digits.
const (
	keyEpoch   = "epoch" // version, counter u64, random u64
	keyJournal = "jseq"  // version, seq u64
	prefixPos  = "pos/"  // pos/<file>
	prefixPend = "pend/" // pend/<file>/<writer>/h and pend/<file>/<writer>/<offset>
	prefixCut  = "trunc/"
	prefixTail = "tail/" // tail/<path>

	kvVersion = 1
)

var le = binary.LittleEndian

func posKey(n spool.Number) string { return prefixPos + n.String() }
func cutKey(n spool.Number) string { return prefixCut + n.String() }

func pendKey(n spool.Number, writer uint64) string {
	return fmt.Sprintf("%s%s/%016x/", prefixPend, n, writer)
}

func chunkKey(pend string, off int64) string { return fmt.Sprintf("%s%016x", pend, off) }

// appendPos is version, position i64, seq u64, path.
func appendPos(b []byte, f *file) []byte {
	b = append(b, kvVersion)
	b = le.AppendUint64(b, uint64(f.pos))
	b = le.AppendUint64(b, f.seq)
	name := ""
	if f.path != nil {
		name = f.path.name
	}
	return append(b, name...)
}

type storedPos struct {
	pos  int64
	seq  uint64
	path string
}

func parsePos(key string, b []byte) (p storedPos, err error) {
	if err := checkValue(key, b, 17); err != nil {
		return p, err
	}
	p.pos, p.seq, p.path = int64(le.Uint64(b[1:])), le.Uint64(b[9:]), string(b[17:])
	if p.pos < 0 {
		return p, fmt.Errorf("%w: %s: position %d", ErrState, key, p.pos)
	}
	return p, nil
}

// appendHead is version, record flags u16, state u8 (bit 0: a piece went out), pid,
// uid, gid u32, time i64, base i64, stored i64, length of path u16, path, then the
// bytes from stored to the end.
func (w *writer) appendHead(b []byte) []byte {
	b = append(b, kvVersion)
	b = le.AppendUint16(b, w.attr.Flags)
	state := byte(0)
	if w.inPiece {
		state |= 1
	}
	b = append(b, state)
	b = le.AppendUint32(b, w.attr.PID)
	b = le.AppendUint32(b, w.attr.UID)
	b = le.AppendUint32(b, w.attr.GID)
	b = le.AppendUint64(b, uint64(w.attr.Time))
	b = le.AppendUint64(b, uint64(w.base))
	b = le.AppendUint64(b, uint64(w.stored))
	b = le.AppendUint16(b, uint16(len(w.path.name)))
	b = append(b, w.path.name...)
	if n := w.stored - w.base; n < int64(len(w.pend)) {
		b = append(b, w.pend[max(n, 0):]...)
	}
	return b
}

const headFixed = 42

type storedHead struct {
	attr         record.Attr
	inPiece      bool
	base, stored int64
	path         string
	rest         []byte
}

func parseHead(key string, b []byte) (h storedHead, err error) {
	if err := checkValue(key, b, headFixed); err != nil {
		return h, err
	}
	h.attr.Flags = le.Uint16(b[1:])
	h.inPiece = b[3]&1 != 0
	h.attr.PID, h.attr.UID, h.attr.GID = le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:])
	h.attr.Time = int64(le.Uint64(b[16:]))
	h.base, h.stored = int64(le.Uint64(b[24:])), int64(le.Uint64(b[32:]))
	n := int(le.Uint16(b[40:]))
	if n > len(b)-headFixed || h.base < 0 || h.stored < 0 {
		return h, fmt.Errorf("%w: %s: path of %d bytes, base %d, stored %d in %d bytes", ErrState, key, n, h.base, h.stored, len(b))
	}
	h.path, h.rest = string(b[headFixed:headFixed+n]), b[headFixed+n:]
	return h, nil
}

// cut is an open truncation: the file had oldSize bytes, all captured, and was to get
// newSize.
type cut struct{ oldSize, newSize int64 }

func (t cut) append(b []byte) []byte {
	b = append(b, kvVersion)
	b = le.AppendUint64(b, uint64(t.oldSize))
	return le.AppendUint64(b, uint64(t.newSize))
}

func parseCut(key string, b []byte) (t cut, err error) {
	if err := checkValue(key, b, 17); err != nil {
		return t, err
	}
	t = cut{int64(le.Uint64(b[1:])), int64(le.Uint64(b[9:]))}
	if t.oldSize < 0 || t.newSize < 0 {
		return t, fmt.Errorf("%w: %s: sizes %d, %d", ErrState, key, t.oldSize, t.newSize)
	}
	return t, nil
}

func appendSeq(b []byte, seq uint64) []byte {
	return le.AppendUint64(append(b, kvVersion), seq)
}

// appendTail is version, writer u64, mark u64.
func (t tail) append(b []byte) []byte {
	b = append(b, kvVersion)
	b = le.AppendUint64(b, t.writer)
	return le.AppendUint64(b, t.mark)
}

func checkValue(key string, b []byte, least int) error {
	if len(b) < least {
		return fmt.Errorf("%w: %s: %d bytes, want at least %d", ErrState, key, len(b), least)
	}
	if b[0] != kvVersion {
		return fmt.Errorf("%w: %s: version %d, this program knows %d; start the version that wrote it", ErrState, key, b[0], kvVersion)
	}
	return nil
}

// parseKey splits what follows prefix into hexadecimal numbers; more gets the rest.
func parseKey(key, prefix string, numbers ...*uint64) (more string, err error) {
	more = strings.TrimPrefix(key, prefix)
	for _, v := range numbers {
		var text string
		text, more, _ = strings.Cut(more, "/")
		if *v, err = strconv.ParseUint(text, 16, 64); err != nil || len(text) != 16 {
			return "", fmt.Errorf("%w: key %q", ErrState, key)
		}
	}
	return more, nil
}
