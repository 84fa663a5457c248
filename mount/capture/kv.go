package capture

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"ftfuse/internal/filter"
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
	prefixDone = "done/" // done/<file>
	prefixSrc  = "src/"  // src/<file>, which has the top bit set

	kvVersion = 1
	// kvVersion2 is written for a position of a file that the kernel writes to, for a
	// truncation with a mark, and for a line that is being dropped or a binary record whose
	// length counts: a program that knows version 1 only refuses them.
	kvVersion2 = 2
)

var le = binary.LittleEndian

func posKey(n spool.Number) string  { return prefixPos + n.String() }
func cutKey(n spool.Number) string  { return prefixCut + n.String() }
func doneKey(n spool.Number) string { return prefixDone + n.String() }

func pendKey(n spool.Number, writer uint64) string {
	return fmt.Sprintf("%s%s/%016x/", prefixPend, n, writer)
}

func chunkKey(pend string, off int64) string { return fmt.Sprintf("%s%016x", pend, off) }

// appendPos is version, position i64, seq u64, path. Version 2, while the kernel writes to
// the file, has writer u64, pid, uid, gid u32 and record flags u16 before the path, which
// then is that of the newest opener.
func appendPos(b []byte, f *file) []byte {
	version, p := byte(kvVersion), f.path
	if f.by.on {
		version, p = kvVersion2, f.by.path
	}
	b = append(b, version)
	b = le.AppendUint64(b, uint64(f.pos))
	b = le.AppendUint64(b, f.seq)
	if f.by.on {
		b = le.AppendUint64(b, f.by.writer)
		b = le.AppendUint32(b, f.by.pid)
		b = le.AppendUint32(b, f.by.uid)
		b = le.AppendUint32(b, f.by.gid)
		b = le.AppendUint16(b, f.by.flags)
	}
	if p == nil {
		return b
	}
	return append(b, p.name...)
}

type storedPos struct {
	pos  int64
	seq  uint64
	by   opened // without its path
	path string
}

const posFixed2 = 17 + 8 + 3*4 + 2

func parsePos(key string, b []byte) (p storedPos, err error) {
	least := 17
	if len(b) > 0 && b[0] == kvVersion2 {
		least = posFixed2
	}
	if err := checkVersions(key, b, least); err != nil {
		return p, err
	}
	p.pos, p.seq, p.path = int64(le.Uint64(b[1:])), le.Uint64(b[9:]), string(b[least:])
	if p.pos < 0 {
		return p, fmt.Errorf("%w: %s: position %d", ErrState, key, p.pos)
	}
	if b[0] == kvVersion2 {
		p.by = opened{
			on: true, writer: le.Uint64(b[17:]), pid: le.Uint32(b[25:]), uid: le.Uint32(b[29:]), gid: le.Uint32(b[33:]),
			flags: le.Uint16(b[37:]),
		}
	}
	return p, nil
}

// appendHead is version, record flags u16, state u8 (bit 0: a piece went out), pid,
// uid, gid u32, time i64, base i64, stored i64, length of path u16, path, then the
// bytes from stored to the end. Version 2, for a line that a filter drops and a binary record
// whose rule bounds it, has bits 1 and 2 of the state (1: denied, 2: unmatched), and the
// length of the binary record so far i64 before that of the path.
func (w *writer) appendHead(b []byte) []byte {
	version := byte(kvVersion)
	if w.dropped != filter.Keep || w.length > 0 && w.path.most > 0 {
		version = kvVersion2
	}
	b = append(b, version)
	b = le.AppendUint16(b, w.attr.Flags)
	state := byte(w.dropped) << 1
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
	if version == kvVersion2 {
		b = le.AppendUint64(b, uint64(w.length))
	}
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
	dropped      filter.Verdict
	base, stored int64
	length       int64
	path         string
	rest         []byte
}

func parseHead(key string, b []byte) (h storedHead, err error) {
	fixed := headFixed
	if len(b) > 0 && b[0] == kvVersion2 {
		fixed += 8
	}
	if err := checkVersions(key, b, fixed); err != nil {
		return h, err
	}
	h.attr.Flags = le.Uint16(b[1:])
	h.inPiece = b[3]&1 != 0
	h.attr.PID, h.attr.UID, h.attr.GID = le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:])
	h.attr.Time = int64(le.Uint64(b[16:]))
	h.base, h.stored = int64(le.Uint64(b[24:])), int64(le.Uint64(b[32:]))
	if b[0] == kvVersion2 {
		h.dropped, h.length = filter.Verdict(b[3]>>1), int64(le.Uint64(b[40:]))
	}
	n := int(le.Uint16(b[fixed-2:]))
	if n > len(b)-fixed || h.base < 0 || h.stored < 0 || h.length < 0 || h.dropped > filter.Unmatched {
		return h, fmt.Errorf("%w: %s: path of %d bytes, base %d, stored %d in %d bytes", ErrState, key, n, h.base, h.stored, len(b))
	}
	h.path, h.rest = string(b[fixed:fixed+n]), b[fixed+n:]
	return h, nil
}

// appendCut is version, old size i64, new size i64; in version 2, where there is a mark, its
// length u8 and its bytes.
func appendCut(b []byte, t spool.Cut) []byte {
	version := byte(kvVersion)
	if len(t.Mark) > 0 {
		version = kvVersion2
	}
	b = append(b, version)
	b = le.AppendUint64(b, uint64(t.Old))
	b = le.AppendUint64(b, uint64(t.New))
	if version == kvVersion2 {
		b = append(append(b, byte(len(t.Mark))), t.Mark...)
	}
	return b
}

func parseCut(key string, b []byte) (t spool.Cut, err error) {
	if err := checkVersions(key, b, 17); err != nil {
		return t, err
	}
	t = spool.Cut{Old: int64(le.Uint64(b[1:])), New: int64(le.Uint64(b[9:]))}
	if b[0] == kvVersion2 {
		if len(b) < 18 || len(b) != 18+int(b[17]) {
			return t, fmt.Errorf("%w: %s: mark in %d bytes", ErrState, key, len(b))
		}
		t.Mark = b[18:]
	}
	if t.Old < 0 || t.New < 0 || int64(len(t.Mark)) > t.Old {
		return t, fmt.Errorf("%w: %s: sizes %d, %d, mark of %d bytes", ErrState, key, t.Old, t.New, len(t.Mark))
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

// checkVersions is checkValue for values that have two versions.
func checkVersions(key string, b []byte, least int) error {
	if len(b) >= least && b[0] == kvVersion2 {
		return nil
	}
	return checkValue(key, b, least)
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
