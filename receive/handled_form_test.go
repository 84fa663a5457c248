package receive

import (
	"errors"
	"fmt"
	"testing"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
)

func TestOptionsThatCannotBeMeantAreRefused(t *testing.T) {
	h := newStore("")
	for _, o := range []ServerOptions{
		{Listen: ":0", Handler: h},
		{Dir: "relative", Listen: ":0", Handler: h},
		{Dir: t.TempDir(), Handler: h},
		{Dir: t.TempDir(), Listen: ":0"},
		{Dir: t.TempDir(), Listen: ":0", Handler: h, Cert: "/c"},
	} {
		if _, err := OpenServer(t.Context(), o); !errors.Is(err, ErrOptions) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestAPositionIsStoredAndReadAgain(t *testing.T) {
	at := Position{Queue: [16]byte{0xab, 15: 0xcd}, Seq: 1<<40 + 3}
	b, err := at.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x", b); got != "01ab0000000000000000000000000000cd0300000000010000" {
		t.Errorf("bytes %s", got)
	}
	var back Position
	if err := back.UnmarshalBinary(b); err != nil || back != at {
		t.Errorf("read %v, %v", back, err)
	}
	for _, bad := range [][]byte{b[:24], append([]byte{2}, b[1:]...), {1}} {
		if err := back.UnmarshalBinary(bad); !errors.Is(err, ErrPosition) {
			t.Errorf("% x: %v", bad, err)
		}
	}
	if err := back.UnmarshalBinary(nil); err != nil || back != (Position{}) {
		t.Errorf("no bytes: %v, %v", back, err)
	}
}

// The note beside a batch in the queue, as docs/protocol.md has it.
func TestTheNoteOfAHandledBatch(t *testing.T) {
	e := &handled{dead: t.TempDir()}
	e.readers.New = func() any { return new(record.Reader) }
	e.pending.init()
	good := newFeeder(1).seal(rec{host: "h", path: "a", data: "x\n"})
	bad := good
	bad.Data = bad.Data[:len(bad.Data)-1]
	for _, c := range []struct {
		b      batch.Sealed
		healed bool
		want   string
	}{{good, false, "0100"}, {good, true, "0102"}, {bad, false, "0101"}} {
		txn, err := e.Take(c.b, "peer")
		if err != nil {
			t.Fatal(err)
		}
		txn.Healed = c.healed
		if err := txn.Prepare(txn); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", txn.Entries[0].Note); got != c.want {
			t.Errorf("note %s, want %s", got, c.want)
		}
	}
}
