package receive

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// A Handler that stores its position with what it makes of the batches has each once,
// wherever the server is killed.
func TestAHandlerHasEachBatchOnceKilledAtEveryStep(t *testing.T) {
	for _, point := range []string{"receive/assigned", "receive/handled", "receive/stored"} {
		t.Run(filepath.Base(point), func(t *testing.T) {
			s := newSetup(t)
			s.CheckpointEvery, s.CheckpointBytes, s.Store = 5*time.Millisecond, 200<<10, filepath.Join(t.TempDir(), "store")
			f := newFeeder(1)
			f.connect(t, s.Listen)
			l := newLoad(t, f, "a", "b", "c")
			for _, nth := range []int{1, 2, 5} {
				p := spawn(t, s, fmt.Sprintf("%s=kill@%d", point, nth))
				l.untilKilled(p)
			}
			x := startOwn(t, s, newStore(s.Store))
			f.until(t, "final acks", f.allFinal)
			x.stop()
			if err := x.end(); err != nil {
				t.Fatal(err)
			}
			l.checkStore(t, s.Store)
		})
	}
}

// Without a position batches come again that the queue had not let go: the test above
// would see it.
func TestAHandlerWithoutAPositionHasSomeTwice(t *testing.T) {
	s := newSetup(t)
	s.CheckpointEvery, s.CheckpointBytes, s.Store = 5*time.Millisecond, 200<<10, filepath.Join(t.TempDir(), "store")
	f := newFeeder(1)
	f.connect(t, s.Listen)
	p := spawn(t, s, "receive/stored=kill")
	f.add(rec{host: "h", path: "a", data: "once\n"})
	if p.gone() == nil {
		t.Fatal("the server was to be killed")
	}
	h := newStore(s.Store)
	h.forget = true
	x := startOwn(t, s, h)
	f.until(t, "final acks", f.allFinal)
	x.stop()
	if err := x.end(); err != nil {
		t.Fatal(err)
	}
	if got := string(h.Bytes["a"]); got != "once\nonce\n" {
		t.Errorf("the store has %q", got)
	}
}

// What the handler is given is what was written, with all attributes.
func TestAHandlerSeesTheRecordsAsTheyWere(t *testing.T) {
	s := newSetup(t)
	h := newStore(filepath.Join(t.TempDir(), "store"))
	var got []Record
	var of []Batch
	h.seen = func(b *Batch, recs []Record) { got, of = append(got, recs...), append(of, *b) }
	x := startOwn(t, s, h)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	f.add(rec{"h", "dir/a", "one\r\n\x00\xff\n", 0, 4711, 17e17}, rec{"h", "b", "open", uint16(Unterminated), 4712, 18e17})
	f.until(t, "final acks", f.allFinal)
	x.stop()
	if err := x.end(); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || len(of) != 1 {
		t.Fatalf("%d records in %d batches", len(got), len(of))
	}
	for i, want := range []Record{
		{"h", "dir/a", 4711, 10, 20, time.Unix(0, 17e17), "", "", 0, []byte("one\r\n\x00\xff\n")},
		{"h", "b", 4712, 10, 20, time.Unix(0, 18e17), "", "", Unterminated, []byte("open")},
	} {
		if g := got[i]; fmt.Sprintf("%+v", g) != fmt.Sprintf("%+v", want) {
			t.Errorf("record %d is %+v, want %+v", i, g, want)
		}
	}
	if b := of[0]; b.Seq != 1 || b.Host != "h" || b.Records != 2 || b.Payload != 12 || !strings.HasSuffix(b.ID, "/1") || b.Sealed != time.Unix(0, 1e18) || b.Resent || b.Healed {
		t.Errorf("batch: %+v", b)
	}
}

// A batch is final when the handler has committed it, and not before.
func TestNothingIsFinalBeforeTheHandlerCommitted(t *testing.T) {
	s := newSetup(t)
	h := newStore(filepath.Join(t.TempDir(), "store"))
	there, release := make(chan Position, 1), make(chan struct{})
	h.commit = func(at Position) error { there <- at; <-release; return nil }
	x := startOwn(t, s, h)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	f.add(rec{host: "h", path: "a", data: "1\n"})
	f.until(t, "the ack", f.allAcked)
	if at := <-there; at.Seq != 1 {
		t.Errorf("commit at %v", at)
	}
	if final := x.s.finals(f.lane, 1); len(final) != 0 {
		t.Errorf("final before the commit: %v", final)
	}
	f.mu.Lock()
	if f.final.Count() != 0 {
		t.Error("the peer was told of a final batch before the commit")
	}
	f.mu.Unlock()
	close(release)
	f.until(t, "the final ack", f.allFinal)
	x.stop()
	if err := x.end(); err != nil {
		t.Fatal(err)
	}
}

// After an error of Batch nothing is committed: what came since the last commit is given
// again.
func TestAHandlerThatFailsStopsTheServerAndCommitsNothing(t *testing.T) {
	s := newSetup(t)
	file := filepath.Join(t.TempDir(), "store")
	h := newStore(file)
	s.CheckpointEvery = time.Hour
	broken := errors.New("no room in the store")
	h.batch = func(b *Batch) error {
		if b.Seq == 2 {
			return broken
		}
		return nil
	}
	h.commit = func(at Position) error { t.Errorf("commit at %v", at); return nil }
	x := startOwn(t, s, h)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	f.add(rec{host: "h", path: "a", data: "1\n"})
	f.add(rec{host: "h", path: "a", data: "2\n"})
	if err := x.end(); !errors.Is(err, broken) || !strings.Contains(err.Error(), "/2") {
		t.Fatalf("the server ended with: %v", err)
	}
	h = newStore(file)
	s.CheckpointEvery = time.Millisecond
	x = startOwn(t, s, h)
	f.until(t, "final acks", f.allFinal)
	x.stop()
	if err := x.end(); err != nil {
		t.Fatal(err)
	}
	if got := string(h.Bytes["a"]); got != "1\n2\n" {
		t.Errorf("the store has %q", got)
	}
}

// The end of the context drains: what was taken is handled and committed.
func TestStoppingDrainsToTheHandler(t *testing.T) {
	s := newSetup(t)
	s.CheckpointEvery = time.Hour
	h := newStore(filepath.Join(t.TempDir(), "store"))
	x := startOwn(t, s, h)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	l := newLoad(t, f, "a", "b")
	for range 50 {
		l.batch()
	}
	f.until(t, "acks", f.allAcked)
	x.stop()
	if err := x.end(); err != nil {
		t.Fatal(err)
	}
	l.checkStore(t, h.file)
}

// A store that belongs to another queue, or is newer than the queue, is refused: what
// comes would be taken for handled.
func TestAPositionOfAnotherQueueIsRefused(t *testing.T) {
	s := newSetup(t)
	file := filepath.Join(t.TempDir(), "store")
	x := startOwn(t, s, newStore(file))
	node := x.s.q.Node()
	x.stop()
	if err := x.end(); err != nil {
		t.Fatal(err)
	}
	for _, at := range []Position{{Queue: batch.Node{1, 2}, Seq: 1}, {Queue: node, Seq: 1}} {
		st := newStore(file)
		if err := st.Commit(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		srv, err := OpenServer(t.Context(), s.serverOptions(st, testLogger(t)))
		if !errors.Is(err, ErrPosition) {
			t.Errorf("position %v: %v", at, err)
			srv.Close()
		}
	}
}

// A batch that cannot be read becomes a dead letter, and the handler never sees it.
func TestAHandlerIsNotGivenWhatCannotBeRead(t *testing.T) {
	s := newSetup(t)
	h := newStore(filepath.Join(t.TempDir(), "store"))
	x := startOwn(t, s, h)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	bad := f.seal(rec{host: "h", path: "a", data: "lost\n"})
	bad.Data = append([]byte(nil), bad.Data...)
	bad.Data[len(bad.Data)-1] ^= 0xff
	bad.CRC = batch.Checksum(bad.Data)
	f.send(bad)
	f.add(rec{host: "h", path: "a", data: "good\n"})
	f.until(t, "final acks", f.allFinal)
	x.stop()
	if err := x.end(); err != nil {
		t.Fatal(err)
	}
	if got := string(h.Bytes["a"]); got != "good\n" {
		t.Errorf("the store has %q", got)
	}
	if dead, _ := filepath.Glob(filepath.Join(s.State, "own", "dead", "*.dead")); len(dead) != 1 {
		t.Errorf("dead letters: %v", dead)
	}
}
