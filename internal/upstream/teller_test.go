package upstream

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// told is a Server and a Queue that remember what they were told.
type told struct {
	finals []batch.Range
	skips  []transport.Skip
	below  uint64
	losses []queue.LaneLoss
}

func (s *told) FinalRanges(_ batch.Lane, r ...batch.Range) { s.finals = append(s.finals, r...) }
func (s *told) Skip(_ batch.Lane, skips ...transport.Skip) { s.skips = append(s.skips, skips...) }
func (s *told) Merge(_ batch.Lane, below uint64)           { s.below = max(s.below, below) }
func (s *told) LostRanges(batch.Lane) []queue.LaneLoss     { return s.losses }
func (s *told) final(_ batch.Lane, b uint64) []batch.Range { return []batch.Range{{First: b, Last: 9}} }

func skipOf(reason string, n uint64) (skip transport.Skip) {
	skip.Reason = reason
	skip.Ranges.Add(n)
	return skip
}

// TestEachConnectionIsToldWhatItMissed, with its first horizon of a lane and not again: two
// peers that take turns with one lane are not told all of it each time, and one that comes
// back is, whatever its address.
func TestEachConnectionIsToldWhatItMissed(t *testing.T) {
	s := &told{losses: []queue.LaneLoss{{Reason: "expired", Ranges: func() batch.Ranges { sk := skipOf("", 7); return sk.Ranges }()}}}
	tell := New(s, s.final, slog.New(slog.DiscardHandler))
	lane := batch.Lane{Route: 1}
	tell.Behind(lane, []transport.Skip{skipOf("corrupt", 8)})
	tell.Horizon(lane, 2, true) // nobody can be told yet
	if len(s.finals) != 0 || s.below != 2 {
		t.Errorf("without a server: %+v", s)
	}
	tell.Attach(s)
	for conn := range 2 {
		tell.Horizon(lane, 3, true)
		for below := uint64(4); below < 6; below++ {
			tell.Horizon(lane, below, false)
		}
		if len(s.finals) != conn+1 || len(s.skips) != 2*(conn+1) || s.below != 5 {
			t.Errorf("connection %d: told %v and %d skips, merged to %d", conn, s.finals, len(s.skips), s.below)
		}
	}
}

// TestMadeUpSkipsDoNotFillTheLog, and are counted all the same; what was left out is said.
func TestMadeUpSkipsDoNotFillTheLog(t *testing.T) {
	var log bytes.Buffer
	tell := New(&told{}, nil, slog.New(slog.NewTextHandler(&log, nil)))
	const n = 3 * logLines
	for i := range uint64(n) {
		if fresh := tell.Before(transport.Peer{}, batch.Lane{Route: 1}, []transport.Skip{skipOf("expired", i+1)}); len(fresh) != 1 {
			t.Fatalf("skip %d: %d are new", i, len(fresh))
		}
	}
	if lines := strings.Count(log.String(), "\n"); lines != logLines {
		t.Errorf("%d lines, want %d", lines, logLines)
	}
	if d := tell.DroppedUpstream()["expired"]; d.Batches != n {
		t.Errorf("%+v were counted", d)
	}
	tell.logged = time.Now().Add(-logEvery)
	tell.Before(transport.Peer{}, batch.Lane{Route: 1}, []transport.Skip{skipOf("expired", n+1)})
	if want := "more=200\n"; !strings.HasSuffix(log.String(), want) {
		t.Errorf("the last line does not end with %q: %s", want, log.String()[log.Len()-80:])
	}
}
