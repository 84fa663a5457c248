package sink

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// A batch that was sealed again under another id (forward.Options.Renote) has, as its note in
// the queue of a late sink, the ids that it had before: the places of its bytes may be stored
// under one of them, before the new one was there or after. The note comes and goes with the
// batch, so that nothing else has to last until all of it is on disk.

// appendFormer appends the note of a batch that had ids before, the oldest first
// (docs/protocol.md, "Note").
func appendFormer(b []byte, ids []batch.ID) []byte {
	start := len(b)
	b = append(b, noteVersion, noteFormer)
	for _, id := range ids {
		b = id.Append(b)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseFormer is the reverse of appendFormer; any other note names none.
func parseFormer(b []byte) ([]batch.ID, error) {
	if len(b) < 2 || b[1] != noteFormer {
		return nil, nil
	}
	if b[0] != noteVersion || len(b) < 2+4 || (len(b)-2-4)%batch.IDSize != 0 {
		return nil, fmt.Errorf("%w: %d bytes of version %d, want former ids, version %d", errNote, len(b), b[0], noteVersion)
	}
	body := b[:len(b)-4]
	if got, want := crc32.Checksum(body, castagnoli), binary.LittleEndian.Uint32(b[len(b)-4:]); got != want {
		return nil, fmt.Errorf("%w: CRC %08x, want %08x", errNote, got, want)
	}
	var ids []batch.ID
	for body = body[2:]; len(body) > 0; body = body[batch.IDSize:] {
		id, err := batch.ParseID(body)
		if err != nil {
			return nil, fmt.Errorf("%w: former id: %w", errNote, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// Renote returns the note of a batch that is sealed again, for the transaction that puts it in
// the place of one with that note and the id old in the queue of a late sink.
func Renote(note []byte, old batch.ID) ([]byte, error) {
	ids, err := parseFormer(note)
	if err != nil {
		return nil, fmt.Errorf("batch %v in the queue: %w", old, err)
	}
	return appendFormer(nil, append(ids, old)), nil
}

// formerOf returns under which ids item was in the queue before it was sealed again, the oldest
// first. The answer is kept until finish: the item's note is replaced by that of its places.
func (a *applier) formerOf(item *queue.Item) []batch.ID {
	if ids, ok := a.late.former[item.Seq]; ok {
		return ids
	}
	ids, err := parseFormer(item.Note)
	if err != nil {
		a.count.doubles.Add(1)
		a.log.Error("the former ids of a batch that was sealed again cannot be read; what was written under one may stand twice", "batch", item.Batch.ID.String(), "error", err)
	}
	if len(ids) > 0 {
		a.late.former[item.Seq] = ids
	}
	return ids
}

// placeKeys are the keys under which the note of a batch may be, the newest first.
func placeKeys(id batch.ID, former []batch.ID) []string {
	keys := []string{placeKey(id)}
	for i := len(former) - 1; i >= 0; i-- {
		keys = append(keys, placeKey(former[i]))
	}
	return keys
}

// noteOf returns the stored note of a batch: under its own id or under one that it had before it
// was sealed again.
func (a *applier) noteOf(item *queue.Item) []byte {
	for _, key := range placeKeys(item.Batch.ID, a.formerOf(item)) {
		if v, ok := a.q.Get(key); ok {
			return v
		}
	}
	return nil
}

// over reports whether a batch is written, and its extents are settled or will be, under an id
// that it had before it was sealed again.
func (a *applier) over(item *queue.Item) bool {
	if a.late == nil {
		return false
	}
	former := a.formerOf(item)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range former {
		if _, ok := a.late.written[id]; ok {
			return true
		}
	}
	return false
}
