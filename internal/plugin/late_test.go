package plugin

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/queue"
)

// Beginnings of lines whose rest does not come have no batch of the queue, and number 0: a plugin
// that remembered that number threw away all but the first of them.
func TestEveryLineThatWaitedTooLongIsStored(t *testing.T) {
	script, err := filepath.Abs("../../testdata/plugins/store.py")
	must(t, err)
	db := filepath.Join(t.TempDir(), "db")
	p := Plugin{
		Cursor: CursorOf("test"), Rule: "logs/**", Command: "/usr/bin/env", Args: Arguments([]string{"python3", script, db}), Ack: AckLine,
		Hosts: "*", Path: "**", Format: "%L", Time: "%s",
	}
	defer func(d time.Duration) { holdFor = d }(holdFor)
	holdFor = 10 * time.Millisecond
	r := newRig(t, p)
	for i, begin := range []string{"first", "second"} {
		r.put(rec{"long", begin, record.PieceFirst})
		await(t, "it is taken", func() bool { return r.set.Stats()[0].TakenBytes > uint64(6*i) && r.backlog(p.Cursor) == 0 })
	}
	r.drain()
	if got := sqliteLines(t, db); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("stored %q", got)
	}
	must(t, r.stop()) // before holdFor is what it was
}

// A binary record is as long as its file is open: of a program that goes on writing nothing was
// given before 80 MiB, since each piece made it wait anew.
func TestABinaryRecordThatGoesOnIsGivenInTheEnd(t *testing.T) {
	defer func(d time.Duration) { holdFor = d }(holdFor)
	holdFor = 200 * time.Millisecond
	r := newRig(t, shell("exec cat >/dev/null", nil))
	r.put(rec{"bin", "begin", record.Binary | record.PieceFirst})
	for begun := time.Now(); r.set.Stats()[0].TakenBytes == 0; {
		r.put(rec{"bin", "more\n", record.Binary | record.PieceMiddle})
		if time.Since(begun) > 10*time.Second {
			t.Fatal("nothing of it is given")
		}
	}
	must(t, r.stop()) // before holdFor is what it was
}

// What a plugin writes to descriptor 3 by mistake filled the log as fast as it wrote.
func TestWhatAcknowledgesNothingIsLoggedAsRarelyAsStandardError(t *testing.T) {
	done := filepath.Join(t.TempDir(), "done")
	p := shell(`i=0; while [ $i -lt 3000 ]; do echo nonsense >&3; i=$((i+1)); done; : >"$0"; cat >/dev/null`, nil)
	p.Args += done + "\x00"
	p.Ack = AckLine
	r := newRig(t, p)
	await(t, "all of it was read", func() bool {
		_, err := os.Stat(done)
		return err == nil && r.set.Stats()[0].BadAcks == 3000
	})
	if n := strings.Count(r.log.String(), "descriptor 3"); n == 0 || n > 500 {
		t.Errorf("%d lines of the log about 3000 of a plugin", n)
	}
}

// The end of a line that is too long for descriptor 3 passed for an acknowledgement.
func TestTheEndOfALongLineAcknowledgesNothing(t *testing.T) {
	p := shell(`read -r b n l s; printf '%064dok %d\n' 0 "$n" >&3; cat >/dev/null`, nil)
	p.Ack = AckLine
	r := newRig(t, p)
	r.lines(0, 1)
	await(t, "it was read", func() bool { return r.set.Stats()[0].BadAcks > 0 || r.set.Stats()[0].TakenBatches > 0 })
	if n := r.set.Stats()[0].TakenBatches; n != 0 {
		t.Errorf("%d batches count as taken", n)
	}
}

// A carriage return inside a line made two rows of it.
func TestALineWithACarriageReturnIsStoredAsOne(t *testing.T) {
	script, err := filepath.Abs("../../testdata/plugins/store.py")
	must(t, err)
	db := filepath.Join(t.TempDir(), "db")
	p := shell("exec python3 "+script+" "+db, nil)
	p.Ack = AckLine
	r := newRig(t, p)
	r.put(rec{"logs/a", "10 %\r20 %\ndone\n", 0})
	await(t, "it is taken", func() bool { return r.backlog(p.Cursor) == 0 })
	r.drain()
	if got := sqliteLines(t, db); !slices.Equal(got, []string{"10 %\r20 %", "done"}) {
		t.Errorf("stored %q", got)
	}
}

// What is held of a line counted as nothing beside the bytes that its format puts there, which may
// be none: the beginnings of lines of ever more files were held, and the numbers of their batches.
func TestWhatIsHeldIsBoundedWhateverTheFormat(t *testing.T) {
	for _, format := range []string{"x", "%L"} {
		p := shell("", func(p *Plugin) { p.Format = format })
		f, err := newFeed(&p, time.UTC, &counters{}, slog.New(slog.DiscardHandler))
		must(t, err)
		build := record.NewBuilder(1 << 20)
		const files = 50000
		var units, given, lines uint64
		for n := uint64(1); n <= files/100; n++ {
			var recs []rec
			for i := range 100 {
				recs = append(recs, rec{fmt.Sprintf("%d/%d", n, i), "b", record.PieceFirst})
			}
			u := f.unit(queue.Item{Seq: n, Entry: queue.Entry{Batch: sealed(build, n, recs...)}})
			units, given, lines = units+1, given+uint64(u.bytes), lines+u.lines
		}
		if held := len(f.pieces); held > maxHeld/heldLine || uint64(held)+lines != files {
			t.Errorf("format %q: the beginnings of %d lines are held, %d were given, of %d", format, held, lines, files)
		}
		if f.count.held.Load() > maxHeld || f.count.split.Load() != lines {
			t.Errorf("format %q: %d bytes held, %d lines count as split, want %d", format, f.count.held.Load(), f.count.split.Load(), lines)
		}
		build = record.NewBuilder(1 << 20)
		for s := range f.pieces { // their ends
			units++
			f.unit(queue.Item{Seq: units, Entry: queue.Entry{Batch: sealed(build, units, rec{s.path, "e\n", record.PieceLast})}})
		}
		if n, b := len(f.pieces), f.count.held.Load(); n != 0 || b != 0 {
			t.Errorf("format %q: %d lines and %d bytes held, want none", format, n, b)
		}
	}
}

// Two mounts that call their host by one name (a clone, two mounts of one host) can have a file of
// one name: the middle of one's line came behind the beginning of the other's.
func TestALineHasNoPieceOfAnotherMount(t *testing.T) {
	p := shell("", nil)
	f, err := newFeed(&p, time.UTC, &counters{}, slog.New(slog.DiscardHandler))
	must(t, err)
	build := record.NewBuilder(1 << 20)
	var got strings.Builder
	for i, x := range []struct {
		origin byte
		data   string
		flags  uint16
	}{{1, "one-", record.PieceFirst}, {2, "two-", record.PieceFirst}, {1, "one-", record.PieceMiddle}, {2, "two\n", record.PieceLast}, {1, "one\n", record.PieceLast}} {
		a := record.Attr{Host: testHost, Path: "long", Flags: x.flags}
		build.Add(&a, []byte(x.data))
		b := build.Seal(batch.ID{Lane: batch.Lane{Origin: batch.Origin{x.origin}}, N: uint64(i + 1)}, 1e18)
		for _, s := range f.unit(queue.Item{Seq: uint64(i + 1), Entry: queue.Entry{Batch: b}}).segs {
			got.Write(s)
		}
	}
	if got.String() != "two-two\none-one-one\n" {
		t.Errorf("got %q", got.String())
	}
}

// A reload that came while the role started its plugins left the old one beside the new.
func TestAReloadWhileThePluginsStart(t *testing.T) {
	for range 30 {
		out := t.TempDir()
		p := shell("cat >/dev/null; echo end >&2", nil)
		r := newRig(t, p)
		p.Args = Arguments([]string{"-c", "exec cat"})
		to(out, "a")(&p)
		must(t, r.set.Reconfigure([]Plugin{p}))
		r.lines(0, 1)
		await(t, "it is taken", func() bool { return r.backlog(p.Cursor) == 0 })
		r.drain()
		wantOnce(t, read(t, filepath.Join(out, "a")), 1)
	}
}
