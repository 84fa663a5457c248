package capture

import (
	"fmt"
	"time"

	"ftfuse/internal/bootid"
	"ftfuse/mount/spool"
)

func sourceKey(n spool.Number) string { return prefixSrc + n.String() }

// appendSource is version, kind u8, state u8 (bit 0: all of it is sent), position i64, device,
// inode u64, birth i64, boot id 16 bytes, time of the change i64, length of path u16, path,
// length of name u16, name, then the beginning.
func (f *file) appendSource(b []byte) []byte {
	s := f.src
	s.Boot, s.Seen = thisBoot, time.Now().UnixNano()
	return s.append(b, f.pos)
}

var thisBoot = bootid.ID()

func (s *Source) append(b []byte, pos int64) []byte {
	state := byte(0)
	if s.Done {
		state |= 1
	}
	b = append(b, kvVersion, byte(s.Kind), state)
	b = le.AppendUint64(b, uint64(pos))
	b = le.AppendUint64(b, s.Dev)
	b = le.AppendUint64(b, s.Ino)
	b = le.AppendUint64(b, uint64(s.Birth))
	b = append(b, s.Boot[:]...)
	b = le.AppendUint64(b, uint64(s.Seen))
	b = le.AppendUint16(b, uint16(len(s.Path)))
	b = append(b, s.Path...)
	b = le.AppendUint16(b, uint16(len(s.Name)))
	b = append(b, s.Name...)
	return append(b, s.Begin...)
}

const sourceFixed = 3 + 8 + 3*8 + 16 + 8 + 2 + 2

func parseSource(key string, b []byte) (s Source, err error) {
	if err := checkValue(key, b, sourceFixed); err != nil {
		return s, err
	}
	s.Kind, s.Done = SourceKind(b[1]), b[2]&1 != 0
	s.Pos, s.Dev, s.Ino = int64(le.Uint64(b[3:])), le.Uint64(b[11:]), le.Uint64(b[19:])
	s.Birth, s.Boot, s.Seen = int64(le.Uint64(b[27:])), [16]byte(b[35:]), int64(le.Uint64(b[51:]))
	rest := b[59:]
	for _, text := range []*string{&s.Path, &s.Name} {
		n := -1
		if len(rest) >= 2 {
			n = int(le.Uint16(rest))
		}
		if n < 0 || n > len(rest)-2 {
			return s, fmt.Errorf("%w: %s: text of %d bytes in %d", ErrState, key, n, len(b))
		}
		*text, rest = string(rest[2:2+n]), rest[2+n:]
	}
	if s.Begin = append([]byte(nil), rest...); s.Pos < 0 || len(s.Begin) > MaxBegin {
		return s, fmt.Errorf("%w: %s: position %d, a beginning of %d bytes", ErrState, key, s.Pos, len(s.Begin))
	}
	return s, nil
}

func (c *Capture) loadSource(n spool.Number, key string, v []byte) error {
	s, err := parseSource(key, v)
	if err == nil && !isSource(n) {
		err = fmt.Errorf("%w: key %q is none of a source", ErrState, key)
	}
	if err != nil {
		return err
	}
	f := c.fileOf(n)
	f.key, f.src, f.pos = key, &s, s.Pos
	return nil
}
