package sink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"ftfuse/internal/output"
	"ftfuse/queue"
)

// endRepair says what a repair of the queue could not know, counts what may stand twice
// because of it, and deletes its note: every batch that the queue kept is at its place now.
//
// A commit that the queue lost may have been written to the output files. What of it its
// sources saw no ack for comes again, and is not known to the delivered set any more. It
// is not looked for in the files: a line that is the same as one of the lost commit may as
// well be a new one. So it is written, and the bytes are counted among which it may stand
// already: those behind what the queue knows of a file.
func (a *applier) endRepair(ctx context.Context) error {
	raw, ok := a.q.Get(queue.RepairedKey)
	if !ok {
		return nil
	}
	if a.late != nil { // who fills the queue has not read the note yet, and deletes it then
		a.table.doubt = a.doubt
		return a.doubtTails()
	}
	var note queue.RepairNote
	if err := json.Unmarshal(raw, &note); err != nil {
		a.log.Error("the note of the queue's repair cannot be read", "error", err)
	}
	if err := a.doubtTails(); err != nil {
		return err
	}
	a.log.Warn("the queue was repaired: batches are lost or may stand twice, as its note tells; those of the last commit before the damage may be lost uncounted", "state_from", note.StateFrom,
		"state_seq", note.StateSeq, "newest_seq", note.NewestSeq, "lost", note.LostCount, "old_values", len(note.OldValues),
		"possible_doubles", a.count.doubles.Load())
	if _, err := a.q.Submit(ctx, &queue.Txn{Set: []queue.KV{{Key: queue.RepairedKey}}, Sync: true}); err != nil {
		return fmt.Errorf("forget the note of the queue's repair: %w", err)
	}
	a.table.doubt = a.doubt // of files that the queue holds nothing of
	return nil
}

// doubtTails counts what stands in files behind the last byte that the queue knows of.
func (a *applier) doubtTails() error {
	for _, g := range a.table.current() {
		f, err := a.table.cache.Pin(&g.slot, func() (*output.File, error) { return g.file.root.OpenID(g.file.name, g.id) })
		if err != nil {
			a.log.Warn("output file cannot be looked at after a repair; bytes at its end may stand twice", "file", g.file.path, "error", err)
			a.count.doubles.Add(1)
			continue
		}
		info, err := f.Stat()
		if err = errors.Join(err, a.table.cache.Unpin(f)); err != nil {
			return fmt.Errorf("look at an output file after a repair: %w", err)
		}
		if end := g.place(g.end); info.Size > end {
			a.doubt(g.file.path, end, info.Size)
		}
	}
	return nil
}

// doubt counts the bytes of a file from from to to, which an earlier run may have written
// for batches that come again.
func (a *applier) doubt(path string, from, to int64) {
	a.count.doubles.Add(1)
	a.log.Warn("bytes may stand twice: the queue was repaired and does not know whose they are; a source that saw no ack for them sends them again",
		"file", path, "offset", from, "bytes", to-from)
}
