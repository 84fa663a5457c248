package relay

import (
	"fmt"
	"os"
	"testing"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/transport"
)

func pauseCopies(t *testing.T) {
	must(t, failpoint.Set("sink/applied", "pause"))
	t.Cleanup(resumeCopies)
}

func resumeCopies() { failpoint.Clear("sink/applied") }

// TestASlowCopyHoldsNothingUp: neither forwarding nor acks nor finals.
func TestASlowCopyHoldsNothingUp(t *testing.T) {
	a := newAggregator(t, 9)
	s := newSetup(t, a).withCopy()
	x := start(t, s)
	pauseCopies(t)
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	want := ""
	for i := range 200 {
		line := fmt.Sprintf("line %d", i)
		f.add("f", line)
		want += line + "\n"
	}
	f.expect(t, "acks and finals", func() bool { return f.allAcked() && f.allFinal() })
	a.check(f)
	if n := x.r.Stats().Sink.Synced.Batches; n != 0 {
		t.Errorf("%d copies are written", n)
	}
	resumeCopies()
	x.end()
	wantFile(t, s.out("h", "f"), want)
}

// TestACopyThatCannotBeWrittenBlocksNothing: a directory has the file's name; it is a dead
// letter of the copy, and goes on all the same.
func TestACopyThatCannotBeWrittenBlocksNothing(t *testing.T) {
	a := newAggregator(t, 9)
	s := newSetup(t, a).withCopy()
	must(t, os.MkdirAll(s.out("h", "f"), 0o755))
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, x.r.Addr().String())
	f.add("f", "one")
	f.add("g", "two")
	f.expect(t, "acks and finals", func() bool { return f.allAcked() && f.allFinal() })
	a.check(f)
	x.end()
	wantFile(t, s.out("h", "g"), "two\n")
	if n := x.r.sink.Stats().Dead["is-a-directory"].Letters; n != 1 {
		t.Errorf("dead letters: %+v", x.r.sink.Stats().Dead)
	}
}

// undecodable is a batch with a good CRC that nobody can read.
func undecodable(f *feeder) batch.Sealed {
	b := f.seal("h", "f", "lost in the middle\n")
	b.Data = append([]byte(nil), b.Data...)
	b.Data[len(b.Data)-1] ^= 0x55
	b.Data[record.HeaderSize+19] = 0xff
	b.CRC = batch.Checksum(b.Data)
	return b
}

// TestWhatCannotBeReadIsPassedOn: the last node decides about it; the copy is a dead letter.
func TestWhatCannotBeReadIsPassedOn(t *testing.T) {
	for _, copies := range []bool{false, true} {
		a := newAggregator(t, 9)
		s := newSetup(t, a)
		if copies {
			s = s.withCopy()
		}
		x := start(t, s)
		f := newFeeder(1)
		f.connect(t, x.r.Addr().String())
		f.send(undecodable(f))
		f.add("f", "after")
		f.expect(t, "acks and finals", func() bool { return f.allAcked() && f.allFinal() })
		a.check(f)
		x.end()
		if copies {
			wantFile(t, s.out("h", "f"), "after\n")
			if n := x.r.sink.Stats().Dead["malformed-batch"].Letters; n != 1 {
				t.Errorf("dead letters: %+v", x.r.sink.Stats().Dead)
			}
		}
	}
}

// TestOnlyWhoDecodesLooksAtHosts: a relay with a copy refuses a batch that holds another
// host's records; one without passes it on, for the last node to refuse.
func TestOnlyWhoDecodesLooksAtHosts(t *testing.T) {
	for _, copies := range []bool{false, true} {
		a := newAggregator(t, 9)
		s := newSetup(t, a)
		if copies {
			s = s.withCopy()
		}
		x := start(t, s)
		f := newFeeder(1)
		f.connect(t, x.r.Addr().String())
		b := f.seal("h", "f", "whose?\n")
		b.Host = "somebody else"
		f.send(b)
		if copies {
			f.expect(t, "a refusal", func() bool { return len(f.refused) == 1 && f.refused[0].Code == transport.Denied })
			if n := x.r.Stats().Foreign; n != 1 {
				t.Errorf("%d are counted", n)
			}
		} else {
			a.expect("the batch", a.has(1))
		}
		x.end()
	}
}

// TestAnOutputIsAddedAndTakenAway: what the queue had before is passed, what comes
// after is copied; without outputs all goes on.
func TestAnOutputIsAddedAndTakenAway(t *testing.T) {
	a := newAggregator(t, 9)
	a.stop()
	plain := newSetup(t, a)
	f := newFeeder(1)
	f.connect(t, plain.Listen)
	x := start(t, plain)
	f.add("f", "before")
	f.expect(t, "hop acks", f.allAcked)
	x.stop()
	<-x.done

	s := plain.withCopy()
	x = start(t, s)
	f.add("f", "with an output")
	f.expect(t, "hop acks", f.allAcked)
	a.start()
	f.expect(t, "final acks", f.allFinal)
	x.end()
	wantFile(t, s.out("h", "f"), "with an output\n")
	if n := x.r.sink.Stats().PassedBatches; n != 1 {
		t.Errorf("%d batches were passed, want 1", n)
	}

	x = start(t, plain)
	f.add("f", "after")
	f.expect(t, "final acks", f.allFinal)
	a.check(f)
	x.end()
	wantFile(t, s.out("h", "f"), "with an output\n")
}
