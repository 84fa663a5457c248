package mount

import (
	"log/slog"
	"testing"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

func openSource(t *testing.T, dir string) (*queue.Queue, *source) {
	t.Helper()
	q, err := queue.Open(dir, queue.Options{Cursors: []string{forwardCursor}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	s, err := newSource(q, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return q, s
}

func sourceLane(n uint64) batch.Lane {
	return batch.Lane{Origin: batch.Origin{1}, Epoch: batch.Epoch{Counter: n, Random: 7}}
}

func submitBatch(t *testing.T, q *queue.Queue, lane batch.Lane, n uint64) {
	t.Helper()
	data := []byte("sealed")
	b := batch.Sealed{ID: batch.ID{Lane: lane, N: n}, CRC: batch.Checksum(data), Data: data, Records: 1, Payload: 6}
	if _, err := q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{{Batch: b}}}); err != nil {
		t.Fatal(err)
	}
}

// TestALaneIsAnnouncedBeforeAnythingOfItIsFinal: the server tells what became final while
// this client was away only for lanes that are announced; a lane whose batches were all
// acked, and none reported as final, must be among them after a restart too.
func TestALaneIsAnnouncedBeforeAnythingOfItIsFinal(t *testing.T) {
	dir := t.TempDir()
	q, s := openSource(t, dir)
	lane := sourceLane(3)
	want := func(when string, below uint64) {
		t.Helper()
		if all := s.Horizon(); len(all) != 1 || all[0] != (transport.LaneHorizon{Lane: lane, Below: below}) {
			t.Fatalf("%s: horizons %v, want %d of lane %v", when, all, below, lane)
		}
	}
	submitBatch(t, q, lane, 1)
	seq, _, err := s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want("sent", 1)
	s.Acked(seq)
	if _, err := q.Submit(t.Context(), &queue.Txn{Set: s.unstored()}); err != nil {
		t.Fatal(err)
	}
	q.Close()
	_, s = openSource(t, dir)
	want("after a restart", 1)
	s.Final(lane, []batch.Range{{First: 1, Last: 1}})
	want("final", 2)
}

// TestARefusedBatchComesAgainWithTheNextConnection, and holds up no other.
func TestARefusedBatchComesAgainWithTheNextConnection(t *testing.T) {
	q, s := openSource(t, t.TempDir())
	var conflicts []batch.Lane
	s.conflict = func(l batch.Lane) { conflicts = append(conflicts, l) }
	lane := sourceLane(1)
	for n := uint64(1); n <= 4; n++ {
		submitBatch(t, q, lane, n)
	}
	next := func(want uint64) uint64 {
		t.Helper()
		seq, b, err := s.Next(t.Context())
		if err != nil || b.ID.N != want {
			t.Fatalf("got batch %v, %v, want number %d", b.ID, err, want)
		}
		return seq
	}
	first := next(1)
	s.Refused(first, transport.Verdict{Code: transport.Version, Text: "a test"})
	second := next(2)
	s.Refused(second, transport.Verdict{Code: transport.Conflict, Text: "a test"})
	if len(conflicts) != 1 || conflicts[0] != lane {
		t.Errorf("conflicts %v were told, want one of lane %v", conflicts, lane)
	}
	s.Acked(next(3))
	if s.stuck() {
		t.Error("a batch is waiting, and the source is stuck")
	}
	fourth := next(4)
	s.Acked(fourth)
	if !s.stuck() {
		t.Error("nothing but refused batches is left, and the source is not stuck")
	}
	for range 2 { // connections
		s.connected(transport.Peer{})
		next(1)
		next(2)
		s.Refused(first, transport.Verdict{Code: transport.Version, Text: "a test"})
		s.Refused(second, transport.Verdict{Code: transport.Conflict, Text: "a test"})
	}
	s.connected(transport.Peer{})
	s.Acked(next(1))
	s.Acked(next(2))
	if s.stuck() {
		t.Error("nothing is left, and the source is stuck")
	}
}
