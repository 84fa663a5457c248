package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"ftfuse/internal/batch"
)

// errDamaged is wrapped by everything that was read and is not what was written.
var errDamaged = errors.New("damaged")

const (
	formatVersion = 2
	headVersion   = 2
	headFixed     = 88 // bytes of an entry's head before via
	maxVia        = 255
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// head is what is stored beside a batch's data: all of the entry but the data.
type head struct {
	seq     uint64
	dataLen uint32
	e       Entry // without Data
}

// size is what an entry counts towards MaxBytes.
func (e *Entry) size() int64 { return int64(len(e.Batch.Data)) + e.envelope() }

func (h *head) size() int64 { return int64(h.dataLen) + h.e.envelope() }

// envelope is what an entry counts beside its data.
func (e *Entry) envelope() int64 {
	return int64(len(e.Note) + headFixed + 41 + batch.NodeSize*len(e.Batch.Via) + len(e.Batch.Host))
}

// appendHead appends the head of e (docs/protocol.md, "Entry head").
func appendHead(b []byte, seq uint64, e *Entry) []byte {
	start := len(b)
	s := &e.Batch
	b = append(b, headVersion, byte(len(s.Via)))
	b = binary.LittleEndian.AppendUint16(b, s.Flags)
	b = binary.LittleEndian.AppendUint32(b, s.CRC)
	b = binary.LittleEndian.AppendUint32(b, s.Records)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s.Data)))
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = binary.LittleEndian.AppendUint64(b, s.Payload)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.Time))
	b = s.ID.Append(b)
	for _, n := range s.Via {
		b = append(b, n[:]...)
	}
	b = append(append(b, byte(len(s.Host))), s.Host...)
	b = append(b, e.Note...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseHead reads what appendHead wrote; the result shares no memory with b.
func parseHead(b []byte) (head, error) {
	var h head
	if len(b) < headFixed+5 {
		return h, fmt.Errorf("%w: entry head of %d bytes, want at least %d", errDamaged, len(b), headFixed+5)
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return h, fmt.Errorf("%w: entry head has CRC %08x, want %08x", errDamaged, got, sum)
	}
	if b[0] != headVersion {
		return h, fmt.Errorf("%w: entry head version %d, this ftfuse reads %d", ErrVersion, b[0], headVersion)
	}
	s := &h.e.Batch
	via := int(b[1])
	s.Flags = binary.LittleEndian.Uint16(b[2:])
	s.CRC = binary.LittleEndian.Uint32(b[4:])
	s.Records = binary.LittleEndian.Uint32(b[8:])
	h.dataLen = binary.LittleEndian.Uint32(b[12:])
	h.seq = binary.LittleEndian.Uint64(b[16:])
	s.Payload = binary.LittleEndian.Uint64(b[24:])
	s.Time = int64(binary.LittleEndian.Uint64(b[32:]))
	id, err := batch.ParseID(b[40:])
	if err != nil {
		return h, fmt.Errorf("%w: entry head: %w", errDamaged, err)
	}
	s.ID = id
	rest := body[headFixed:]
	if len(rest) < via*batch.NodeSize+1 || len(rest) < via*batch.NodeSize+1+int(rest[via*batch.NodeSize]) {
		return h, fmt.Errorf("%w: entry head ends within %d nodes and a host name", errDamaged, via)
	}
	if via > 0 {
		s.Via = make([]batch.Node, via)
		for i := range s.Via {
			copy(s.Via[i][:], rest[i*batch.NodeSize:])
		}
	}
	rest = rest[via*batch.NodeSize:]
	s.Host = string(rest[1 : 1+rest[0]])
	if note := rest[1+len(s.Host):]; len(note) > 0 {
		h.e.Note = append([]byte(nil), note...)
	}
	return h, nil
}

// A stored state value is the CRC-32C of its key and the value, then the value.

func encodeValue(key string, value []byte) []byte {
	b := make([]byte, 4, 4+len(value))
	b = append(b, value...)
	binary.LittleEndian.PutUint32(b, valueCRC(key, value))
	return b
}

func valueCRC(key string, value []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(key), castagnoli), castagnoli, value)
}

func decodeValue(key string, b []byte) ([]byte, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("%w: state value %q of %d bytes", errDamaged, key, len(b))
	}
	if want, got := binary.LittleEndian.Uint32(b), valueCRC(key, b[4:]); got != want {
		return nil, fmt.Errorf("%w: state value %q has CRC %08x, want %08x", errDamaged, key, got, want)
	}
	return b[4:], nil
}

// fields appends and reads rows of uvarints.

func appendFields(b []byte, v ...uint64) []byte {
	for _, x := range v {
		b = binary.AppendUvarint(b, x)
	}
	return b
}

func readFields(b []byte, v ...*uint64) ([]byte, error) {
	for i, p := range v {
		x, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, fmt.Errorf("%w: number %d of %d is missing", errDamaged, i+1, len(v))
		}
		*p, b = x, b[n:]
	}
	return b, nil
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }
