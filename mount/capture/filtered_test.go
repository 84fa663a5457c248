package capture

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/filter"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

func entry(pattern string, replace ...string) filter.Entry {
	e := filter.Entry{Pattern: regexp.MustCompile(pattern)}
	if len(replace) > 0 {
		e.Replace = &replace[0]
	}
	return e
}

// someFilter denies x, masks token, keeps what has a and drops the rest.
func someFilter() *filter.Filter {
	return filter.New(filter.Spec{
		Deny:  []filter.Entry{entry("x")},
		Allow: []filter.Entry{entry("token=([0-9]+)$", "token=<$1>"), entry("a")},
	})
}

func (r *rig) wantRule(i int, want RuleStats) {
	r.Helper()
	want.Path = r.o.Rules[i].Path
	if got := r.c.Stats().Rules[i]; got != want {
		r.Errorf("rule %d counted %+v, want %+v", i, got, want)
	}
}

func TestALineIsJudgedOnceItIsComplete(t *testing.T) {
	r := newRig(t, Options{Rules: []Rule{{Path: "f", Transfer: true, Filter: someFilter()}}})
	r.start()
	h, other := r.writer("f"), r.writer("f")
	r.write(h, "1 a\n2 x a\n3\n4 a\n\n\r\n")
	r.write(h, "5 tok")
	r.write(other, "6 a")
	r.write(h, "en=77")
	r.write(h, "7\r\n8 token=1 \n9 a\n10 a x")
	r.write(other, "\n11 a, no end")
	r.drain()
	r.want("f", "1 a\n4 a\n5 token=<777>\r\n9 a\n6 a\n")
	h.End(r.meta())
	other.End(r.meta())
	r.drain()
	r.want("f", "1 a\n4 a\n5 token=<777>\r\n9 a\n6 a\n11 a, no end")
	r.wantRule(0, RuleStats{
		DeniedLines: 2, DeniedBytes: uint64(len("2 x a\n10 a x")),
		UnmatchedLines: 4, UnmatchedBytes: uint64(len("3\n\n\r\n8 token=1 \n")), ReplacedLines: 1,
	})
}

// TestWhatAFilterDropsIsCapturedAllTheSame: the spool is punched behind it, and nothing of it
// comes back at a start.
func TestWhatAFilterDropsIsCapturedAllTheSame(t *testing.T) {
	r := newRig(t, Options{Rules: []Rule{{Path: "**", Transfer: true, Filter: filter.New(filter.Spec{Deny: []filter.Entry{{Literal: "d"}}, Default: true})}}})
	r.start()
	h := r.writer("f")
	for range 2000 {
		r.write(h, "dropped\n")
	}
	r.drain()
	r.waitFor("the store to hear of it", func() bool { return r.s.Uncaptured() == 0 })
	r.wantRule(0, RuleStats{DeniedLines: 2000, DeniedBytes: 16_000})
	r.restart()
	r.wantRule(0, RuleStats{})
	if all := r.records(); len(all) != 0 {
		t.Errorf("%d records", len(all))
	}
}

// TestNeighboursThatAreKeptAreOneRecord, whatever is dropped between them, and so are those
// that were rewritten.
func TestNeighboursThatAreKeptAreOneRecord(t *testing.T) {
	r := newRig(t, Options{Rules: []Rule{{Path: "f", Transfer: true, Filter: someFilter()}}})
	r.start()
	r.write(r.writer("f"), "a1\nx\na2\ntoken=1\nno\na3\n")
	r.drain()
	r.wantRecords("f", "a1\na2\ntoken=<1>\na3\n|0")
}

// TestALongLineIsJudgedByItsBeginning: it goes out, or not, before its end is there; also
// where everything is killed and started meanwhile.
func TestALongLineIsJudgedByItsBeginning(t *testing.T) {
	o := Options{MaxHold: 20, Rules: []Rule{{Path: "f", Transfer: true, MaxLine: 10, Filter: someFilter()}}}
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprint("killed ", kill), func(t *testing.T) {
			r := newRig(t, o)
			r.start()
			dropped, kept, masked := r.writer("f"), r.writer("f"), r.writer("f")
			r.write(dropped, "345678901 x"+strings.Repeat("a", 20)) // nothing of the first ten matches
			r.write(kept, "a234567890"+strings.Repeat("x", 20))
			r.write(masked, " token=123"+strings.Repeat("4", 20))
			r.drain()
			want := "a234567890" + strings.Repeat("x", 20)
			if kill {
				r.takeOver(&dropped, &kept, &masked)
			}
			r.write(dropped, "a\na\n")
			r.write(kept, "x\nx\n")
			r.write(masked, "5\n")
			r.drain()
			got := map[uint32]string{}
			for _, x := range r.records() {
				got[0] += x.data
			}
			for _, s := range []string{want, "x\n", " token=<123>" + strings.Repeat("4", 20), "5\n", "a\n"} {
				if !strings.Contains(got[0], s) {
					t.Errorf("no %q in %q", s, got[0])
				}
			}
			if n := len(want + "x\n" + " token=<123>" + strings.Repeat("4", 20) + "5\n" + "a\n"); len(got[0]) != n {
				t.Errorf("%d bytes, want %d: %q", len(got[0]), n, got[0])
			}
			if !kill {
				r.wantRule(0, RuleStats{
					DeniedLines: 1, DeniedBytes: 2, UnmatchedLines: 1, UnmatchedBytes: 33, ReplacedLines: 1,
				})
			}
		})
	}
}

// takeOver kills and starts as a worker that takes the connection over does: handles live on.
func (r *rig) takeOver(handles ...**spool.Handle) {
	r.Helper()
	r.crash()
	r.q.reopen()
	r.open()
	live := map[uint64]bool{}
	for _, h := range handles {
		old := *h
		var err error
		*h, err = r.s.RestoreHandle(r.file(old.Path), old.Path, spool.PerWrite, old.Writer, &spool.Meta{})
		r.must(err)
		live[old.Writer] = true
	}
	r.must(r.c.Recover(r.ctx(), func(w uint64) bool { return live[w] }))
	r.run()
}

// TestARewrittenLineLongerThanARecordGoesOutWhole: its pieces are in one transaction, since no
// position stands for a place inside of it; killed before, all of it comes.
func TestARewrittenLineLongerThanARecordGoesOutWhole(t *testing.T) {
	grow := filter.New(filter.Spec{Allow: []filter.Entry{entry("g", strings.Repeat("0123456789abcdef", 1<<16))}, Default: true})
	want := strings.Repeat(strings.Repeat("0123456789abcdef", 1<<16), 3)
	for stop := range 5 { // 0: not
		r := newRig(t, Options{Rules: []Rule{{Path: "f", Transfer: true, Filter: grow}}})
		r.start()
		h := r.writer("f")
		r.write(h, "before\n")
		r.drain()
		if stop > 0 {
			r.must(failpoint.Set("capture/seal", fmt.Sprintf("error@%d", stop)))
		}
		r.write(h, "1\ngg")
		r.write(h, "g\n2\nggg\n3\n")
		err := r.c.DrainAll(r.ctx())
		failpoint.Clear("capture/seal")
		if err != nil {
			r.restart()
		}
		if stop == 1 && err == nil {
			t.Errorf("nothing stopped at step %d", stop)
		}
		r.want("f", "before\n1\n"+want+"\n2\n"+want+"\n3\n")
	}
}

// TestAnOverwriteThatTheQueueRefusesCountsNothing.
func TestAnOverwriteThatTheQueueRefusesCountsNothing(t *testing.T) {
	r := newRig(t, Options{Rules: []Rule{{Path: "f", Transfer: true, Filter: someFilter()}}})
	r.start()
	h := r.writer("f")
	r.write(h, "a old\n")
	r.drain()
	data := []byte("x a\nb\ntoken=1\n")
	e := spool.Entry{File: h.Number(), Writer: h.Writer, Path: h.Path, PathID: h.PathID, PID: 1, Kind: spool.Write}
	r.q.set(func() { r.q.refuse = queue.ErrFull })
	if err := r.c.Overwrite(r.ctx(), h.Number(), e, data, 15); !errors.Is(err, queue.ErrFull) {
		t.Fatal(err)
	}
	r.wantRule(0, RuleStats{})
	r.q.set(func() { r.q.refuse = nil })
	r.must(r.c.Overwrite(r.ctx(), h.Number(), e, data, 15))
	r.wantRule(0, RuleStats{DeniedLines: 1, DeniedBytes: 4, UnmatchedLines: 1, UnmatchedBytes: 2, ReplacedLines: 1})
	r.want("f", "a old\ntoken=<1>\n")
	if string(data) != "x a\nb\ntoken=1\n" {
		t.Errorf("the caller's bytes became %q", data)
	}
}

// TestABinaryRecordEndsAtItsMaximum, at a flush and at the last close; a start in between
// changes nothing.
func TestABinaryRecordEndsAtItsMaximum(t *testing.T) {
	r := newRig(t, Options{Rules: []Rule{{Path: "f", Transfer: true, Mode: ModeBinary, MaxRecord: 10}}})
	r.start()
	h := r.writer("f")
	r.write(h, "0123456789")
	r.write(h, "0123456")
	r.drain()
	r.takeOver(&h)
	r.write(h, "789012345678901")
	r.must(h.Flush(r.meta()))
	r.write(h, "x")
	h.End(r.meta())
	r.drain()
	p := func(s string, f uint16) string { return fmt.Sprintf("%s|%x", s, f|record.Binary) }
	r.wantRecords("f", p("0123456789", 0), p("0123456", record.PieceFirst), p("789", record.PieceLast),
		p("0123456789", 0), p("01", record.PieceFirst), p("", record.PieceLast), p("x", record.PieceFirst), p("", record.PieceLast))
}

// TestALineOfUpTo64MiBIsJudgedWhole: nothing of it goes out before its end is there, and what is
// kept comes out whole, also over a start.
func TestALineOfUpTo64MiBIsJudgedWhole(t *testing.T) {
	const size = 40 << 20
	r := newRig(t, Options{Rules: []Rule{{
		Path: "f", Transfer: true, MaxLine: 64 << 20,
		Filter: filter.New(filter.Spec{Deny: []filter.Entry{{Literal: "deny"}}, Default: true}),
	}}})
	r.start()
	kept, denied := r.writer("f"), r.writer("f")
	chunk := strings.Repeat("0123456789abcdef", 1<<16)
	for range size >> 20 {
		r.write(kept, chunk)
		r.write(denied, chunk)
	}
	r.drain()
	r.takeOver(&kept, &denied)
	if n := len(r.records()); n != 0 {
		t.Fatalf("%d records went out before the ends of their lines", n)
	}
	r.write(denied, "deny\n")
	r.write(kept, "end\n")
	r.drain()
	r.want("f", strings.Repeat(chunk, size>>20)+"end\n")
	r.wantRule(0, RuleStats{DeniedLines: 1, DeniedBytes: size + 5})
}
