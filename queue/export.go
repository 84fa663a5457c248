package queue

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"ftfuse/internal/batch"
)

// An export is the batches of a queue as a stream (docs/protocol.md, "Export"): a header,
// then each batch as its entry head, without note, and its data, then an end that counts
// them. All of it is under CRCs.

// Errors of an ExportReader.
var (
	// ErrNoExport is returned for a stream that is none, or of a version not known.
	ErrNoExport = errors.New("not an export of a queue that this ftfuse reads")
	// ErrExportCut is returned where a stream ends before its end: what was read is good,
	// what else was in the queue is not known.
	ErrExportCut = errors.New("the export is cut short")
	// ErrExportDamaged is returned for bytes that are not what was written.
	ErrExportDamaged = errors.New("the export is damaged")
)

const (
	exportMagic   = "FTFUSEX\x00"
	exportVersion = 1
	exportHeader  = 8 + 4 + batch.NodeSize + 8 + 4
	exportBatch   = 1
	exportEnd     = 2
	exportEndSize = 5*8 + 4
	maxExportHead = 16 << 10
)

// Exported says what an Export wrote.
type Exported struct {
	Tally
	Unreadable uint64 // batches that cannot be read and are not in the export
}

// Export writes the batches that cursor (any cursor, for "") still needs to w, for Import
// on another host. It marks nothing as passed. The copies carry FlagResent: this node may
// have sent them already, and not been told what became of it. Batches that cannot be read are left out
// and counted.
func (q *Queue) Export(ctx context.Context, w io.Writer, cursor string) (Exported, error) {
	var sum Exported
	b := bufio.NewWriterSize(w, 256<<10)
	head := append([]byte(exportMagic), 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(head[8:], exportVersion)
	head = append(head, q.node[:]...)
	head = binary.LittleEndian.AppendUint64(head, uint64(time.Now().UnixNano()))
	head = binary.LittleEndian.AppendUint32(head, batch.Checksum(head))
	if _, err := b.Write(head); err != nil {
		return sum, fmt.Errorf("write the export: %w", err)
	}
	var buf []byte
	err := q.Cat(ctx, cursor, func(l Listed, s batch.Sealed) error {
		if l.Err != nil {
			sum.Unreadable++
			return nil
		}
		s.Flags |= batch.FlagResent
		buf = append(buf[:0], exportBatch, 0, 0, 0, 0)
		buf = appendHead(buf, l.Seq, &Entry{Batch: s})
		binary.LittleEndian.PutUint32(buf[1:], uint32(len(buf)-5))
		_, err := b.Write(buf)
		if err == nil {
			_, err = b.Write(s.Data)
		}
		if err != nil {
			return fmt.Errorf("write the export: %w", err)
		}
		sum.add(tally{1, uint64(s.Records), s.Payload, uint64(len(s.Data))})
		return nil
	})
	if err != nil {
		return sum, err
	}
	if _, err := b.Write(sum.encode()); err != nil {
		return sum, fmt.Errorf("write the export: %w", err)
	}
	if err := b.Flush(); err != nil {
		return sum, fmt.Errorf("write the export: %w", err)
	}
	return sum, nil
}

// Export is Queue.Export.
func (v *View) Export(ctx context.Context, w io.Writer, cursor string) (Exported, error) {
	return v.q.Export(ctx, w, cursor)
}

func (x *Exported) encode() []byte {
	b := []byte{exportEnd}
	for _, v := range []uint64{x.Batches, x.Records, x.Payload, x.Bytes, x.Unreadable} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return binary.LittleEndian.AppendUint32(b, batch.Checksum(b))
}

// ExportReader reads an export. Make one with NewExportReader.
type ExportReader struct {
	Node  batch.Node // whose queue it is of
	Time  time.Time  // when it was made
	Total Exported   // of the whole export; set when Next returned io.EOF

	r   *bufio.Reader
	got Exported
}

// NewExportReader reads the header of an export.
func NewExportReader(r io.Reader) (*ExportReader, error) {
	x := &ExportReader{r: bufio.NewReaderSize(r, 256<<10)}
	var h [exportHeader]byte
	if n, err := io.ReadFull(x.r, h[:]); err != nil {
		if n < 8 || string(h[:8]) != exportMagic {
			return nil, fmt.Errorf("%w: it has %d bytes: %w", ErrNoExport, n, err)
		}
		return nil, exportError("header", err)
	}
	if string(h[:8]) != exportMagic {
		return nil, fmt.Errorf("%w: it begins with %q", ErrNoExport, h[:8])
	}
	if v := binary.LittleEndian.Uint32(h[8:]); v != exportVersion {
		return nil, fmt.Errorf("%w: version %d, want %d", ErrNoExport, v, exportVersion)
	}
	if batch.Checksum(h[:exportHeader-4]) != binary.LittleEndian.Uint32(h[exportHeader-4:]) {
		return nil, fmt.Errorf("%w: header", ErrExportDamaged)
	}
	copy(x.Node[:], h[12:])
	x.Time = time.Unix(0, int64(binary.LittleEndian.Uint64(h[12+batch.NodeSize:])))
	return x, nil
}

func exportError(what string, err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: within or before a %s", ErrExportCut, what)
	}
	return fmt.Errorf("read the export: %w", err)
}

// Next returns the next batch, checked by its CRC, or io.EOF after the last one of a whole
// export. The caller owns the batch.
func (x *ExportReader) Next() (batch.Sealed, error) {
	kind, err := x.r.ReadByte()
	if err != nil {
		return batch.Sealed{}, exportError("batch or the end", err)
	}
	switch kind {
	case exportBatch:
		return x.batch()
	case exportEnd:
		return batch.Sealed{}, x.end()
	}
	return batch.Sealed{}, fmt.Errorf("%w: item %d", ErrExportDamaged, kind)
}

func (x *ExportReader) batch() (batch.Sealed, error) {
	var size [4]byte
	if _, err := io.ReadFull(x.r, size[:]); err != nil {
		return batch.Sealed{}, exportError("batch", err)
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n > maxExportHead {
		return batch.Sealed{}, fmt.Errorf("%w: head of %d bytes", ErrExportDamaged, n)
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(x.r, raw); err != nil {
		return batch.Sealed{}, exportError("batch", err)
	}
	h, err := parseHead(raw)
	if err != nil {
		return batch.Sealed{}, fmt.Errorf("%w: %w", ErrExportDamaged, err)
	}
	s := h.e.Batch
	if s.Data, err = readData(x.r, int64(h.dataLen)); err != nil {
		return batch.Sealed{}, exportError("batch", err)
	}
	if got := crc32.Checksum(s.Data, castagnoli); got != s.CRC {
		return batch.Sealed{}, fmt.Errorf("%w: batch %v has CRC %08x, want %08x", ErrExportDamaged, s.ID, got, s.CRC)
	}
	x.got.add(tally{1, uint64(s.Records), s.Payload, uint64(len(s.Data))})
	return s, nil
}

// readData reads n bytes, and allocates no more than has come in twice over.
func readData(r io.Reader, n int64) ([]byte, error) {
	const step = 1 << 20
	b := make([]byte, min(n, step))
	for at := int64(0); ; {
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			return nil, err
		}
		if at = int64(len(b)); at == n {
			return b, nil
		}
		b = append(b, make([]byte, min(n-at, at))...)
	}
}

func (x *ExportReader) end() error {
	raw := make([]byte, 1+exportEndSize)
	raw[0] = exportEnd
	if _, err := io.ReadFull(x.r, raw[1:]); err != nil {
		return exportError("end", err)
	}
	if batch.Checksum(raw[:exportEndSize-3]) != binary.LittleEndian.Uint32(raw[exportEndSize-3:]) {
		return fmt.Errorf("%w: its end", ErrExportDamaged)
	}
	var v [5]uint64
	for i := range v {
		v[i] = binary.LittleEndian.Uint64(raw[1+8*i:])
	}
	x.Total = Exported{tally{v[0], v[1], v[2], v[3]}, v[4]}
	if x.got.Tally != x.Total.Tally {
		return fmt.Errorf("%w: it has %d batches, and says it has %d", ErrExportDamaged, x.got.Batches, x.Total.Batches)
	}
	return io.EOF
}

// Imported says what an Import did with the batches of an export. What is counted in
// Tally is on disk.
type Imported struct {
	Tally
	Conflicts  []batch.ID // not taken: this node took another content under that id
	Unreadable uint64     // left out by the export
}

// Import appends the batches of an export, as they are, for every cursor. It takes those
// that were taken here before, too: this node may have passed them to the host that died.
// Who has them downstream refuses them as duplicates. It waits where the queue is full. On
// an error what was counted is imported; to import the same again does no harm.
func (q *Queue) Import(ctx context.Context, r io.Reader) (Imported, error) {
	x, err := NewExportReader(r)
	if err != nil {
		return Imported{}, err
	}
	var conflicts []batch.ID
	var mu sync.Mutex
	var stored tally
	for err == nil {
		var s batch.Sealed
		if s, err = x.Next(); err != nil {
			break
		}
		t := tally{1, uint64(s.Records), s.Payload, uint64(len(s.Data))}
		_, err = q.Submit(ctx, &Txn{Entries: []Entry{{Batch: s}}, Again: true, Done: func(err error) {
			if err == nil {
				mu.Lock()
				stored.add(t)
				mu.Unlock()
			}
		}})
		if errors.Is(err, ErrConflict) {
			conflicts, err = append(conflicts, s.ID), nil
		}
	}
	if err == io.EOF {
		err = nil
	}
	err = errors.Join(err, q.Flush(ctx))
	mu.Lock()
	defer mu.Unlock()
	return Imported{Tally: stored, Conflicts: conflicts, Unreadable: x.Total.Unreadable}, err
}
