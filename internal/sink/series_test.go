package sink

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"ftfuse/internal/output"
	"ftfuse/queue"
)

// TestSeriesIsStoredAsDocumented: docs/protocol.md, "The receiver: state".
func TestSeriesIsStoredAsDocumented(t *testing.T) {
	one := output.ID{Dev: 2049, Ino: 77, Birth: -5, Handle: 0x0102030405060708}
	s := &series{dir: "/data", name: "h/app.log", file: "%H/%F", last: 300, kept: []rotated{
		{number: 298, stage: stagePacked, codec: codecZstd, id: one},
		{number: 299, stage: stageNoted, codec: codecGzip, id: one, packed: output.ID{Dev: 1, Ino: 2, Birth: 3, Handle: 4}},
		{number: 300, id: one},
	}}
	raw := s.append(nil)
	want, err := os.ReadFile("testdata/series.hex")
	must(t, err)
	if got := hex.EncodeToString(raw) + "\n"; got != string(want) {
		t.Errorf("encoded as\n%s want\n%s", got, want)
	}
	back, err := parseSeries(raw)
	must(t, err)
	if !reflect.DeepEqual(back, s) {
		t.Errorf("read back as %+v, want %+v", back, s)
	}
	for i := range raw { // a flipped bit anywhere, a cut anywhere
		bad := bytes.Clone(raw)
		bad[i] ^= 0x10
		if _, err := parseSeries(bad); !errors.Is(err, errSeries) {
			t.Errorf("with bit 4 of byte %d flipped: %v", i, err)
		}
		if _, err := parseSeries(raw[:i]); !errors.Is(err, errSeries) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}

// TestDamagedStateOfARotationRemovesNothing: the files are left alone, and it goes on.
func TestDamagedStateOfARotationRemovesNothing(t *testing.T) {
	one := Rotate{Size: 4 << 10, Keep: 1}
	r := newRotating(t, one)
	from := newSealer(1)
	stop := r.runs(t)
	want := r.feedLines(t, from, "f", 0, 100, 100)
	r.drain(t)
	eventually(t, "a rotation", func() bool { return r.Stats().Rotations == 1 })
	stop()
	key := seriesKey(r.out("f"))
	raw, _ := r.q.Get(key)
	bad := bytes.Clone(raw)
	bad[9] ^= 1
	_, err := r.q.Submit(t.Context(), &queue.Txn{Set: []queue.KV{{Key: key, Value: bad}}, Sync: true})
	must(t, err)
	must(t, r.q.Close())
	must(t, r.Close())
	r.reopen(t, rotating(r.out(), one))
	stop = r.runs(t)
	for i := range 2 {
		n := r.Stats().Rotations
		want += r.feedLines(t, from, "f", 100+i*100, 100, 100)
		r.drain(t)
		eventually(t, "a rotation", func() bool { return r.Stats().Rotations > n })
	}
	eventually(t, "a removal", func() bool { return r.Stats().RotatedRemoved == 1 && r.rotor.idle() })
	stop()
	if got := unpack(t, r.out("f.000001")); !strings.HasPrefix(want, got) || len(got) < 4096 {
		t.Errorf("the file of the damaged state has %d bytes", len(got))
	}
}

// TestTheStateOfARotationHasABound though every file is kept: the oldest finished ones are
// forgotten, and stay.
func TestTheStateOfARotationHasABound(t *testing.T) {
	s := &series{}
	for n := range uint64(20) {
		s.kept = append(s.kept, rotated{number: n, codec: codecGzip, stage: stagePacked})
	}
	s.kept[1].stage, s.kept[3].codec = stagePlain, codecNone // the one is to be compressed, the other not
	if gone := s.trim(10); len(gone) != 10 || len(s.kept) != 10 || s.kept[0].number != 1 || s.kept[1].number != 11 {
		t.Errorf("%d are forgotten, kept are %+v", len(gone), s.kept)
	}
	if gone := s.trim(10); len(gone) != 0 {
		t.Errorf("%d more are forgotten", len(gone))
	}
}

// TestWhatTheQueueDroppedIsNotWaitedFor: its file is compressed when all else is on disk.
func TestWhatTheQueueDroppedIsNotWaitedFor(t *testing.T) {
	r := &rig{dir: t.TempDir(), queue: queue.Options{MaxBytes: 64 << 10, OnFull: queue.DropOldest}}
	r.reopen(t, rotating(r.out(), Rotate{Size: 4 << 10, Compress: "gzip"}))
	defer r.Close()
	defer r.q.Close()
	from := newSealer(1)
	lines := strings.Repeat(strings.Repeat("x", 99)+"\n", 100)
	for range 20 {
		r.take(t, from.seal(rec{host: "h", path: "f", data: lines}))
	}
	must(t, r.rotor.try(t.Context(), r.table.files[r.out("f")], false))
	r.take(t, from.seal(rec{host: "h", path: "f", data: lines}))
	dropped := 0
	for _, n := range r.q.Stats().Losses {
		dropped += int(n.Batches)
	}
	if dropped == 0 {
		t.Fatal("the queue dropped nothing: the test shows nothing")
	}
	stop := r.runs(t)
	r.drain(t)
	eventually(t, "compression", func() bool { return r.Stats().RotatedPacked >= 1 })
	stop()
	if left, busy := len(r.table.eras), len(r.applier.ids); left > 1 || busy > 0 {
		t.Errorf("%d generations and %d batches are kept for ever", left, busy)
	}
}
