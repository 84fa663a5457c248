package sink

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/record"
)

// model writes records the slow way: one file at a time, byte by byte, without looking
// at how plans are made.
type model struct {
	text  strings.Builder
	begun bool   // not at the beginning of a line
	mid   string // source whose long line is open; "": none
}

func (m *model) add(r rec, exact, mixes bool) {
	src := r.host + "\x00" + r.path
	if r.data == "" {
		m.end(r, src, exact, mixes)
		return
	}
	cont := r.flags&(record.PieceMiddle|record.PieceLast) != 0 && r.flags&record.Break == 0
	joined := cont && m.begun && m.mid == src
	unfinished := r.flags&(record.PieceFirst|record.PieceMiddle) != 0
	if m.begun && !joined && (!exact || mixes || r.flags&record.Break != 0) {
		m.text.WriteByte('\n')
		m.begun, m.mid = false, ""
	}
	for line := range strings.Lines(r.data) {
		whole := strings.HasSuffix(line, "\n")
		switch {
		case exact:
			m.text.WriteString(line)
		default:
			body, end := strings.TrimSuffix(line, "\n"), "\n"
			if whole && strings.HasSuffix(body, "\r") {
				body, end = body[:len(body)-1], "\r\n"
			}
			if !joined {
				m.text.WriteString("[" + r.path + "] ")
			}
			m.text.WriteString(body)
			if whole || !unfinished {
				m.text.WriteString(" (" + fmt.Sprint(r.pid) + ")" + end)
			}
		}
		joined = false
		m.begun, m.mid = false, ""
		if whole {
			continue
		}
		switch {
		case unfinished:
			m.begun, m.mid = true, src
		case exact && mixes && r.flags&record.Binary == 0:
			m.text.WriteByte('\n')
		case exact:
			m.begun = true
		}
	}
}

// end is a record without bytes: the end of a line in pieces, or of that of another writer.
func (m *model) end(r rec, src string, exact, mixes bool) {
	if r.flags&record.Break != 0 {
		if r.flags&record.PieceLast == 0 && m.begun && (m.mid == src || exact && !mixes) {
			m.text.WriteByte('\n')
			m.begun, m.mid = false, ""
		}
		return
	}
	shows := !exact || mixes && r.flags&record.Binary == 0
	if shows && r.flags&record.PieceLast != 0 && m.begun && m.mid == src {
		if !exact {
			m.text.WriteString(" (" + fmt.Sprint(r.pid) + ")")
		}
		m.text.WriteByte('\n')
		m.begun, m.mid = false, ""
	}
}

// TestPlansAgreeWithTheModel plans random records, in random batches, twice with planners
// of their own, and compares with the model.
func TestPlansAgreeWithTheModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 3))
	for round := range 300 {
		format, file := [...]string{"%L", "[%F] %L (%P)"}[rnd.IntN(2)], [...]string{"%H/%F", "all"}[rnd.IntN(2)]
		s, err := newSet([]Output{output1("/d", func(o *Output) { o.Format, o.File = format, file })})
		must(t, err)
		exact, mixes := format == "%L", file == "all"
		want, state, got := map[string]*model{}, map[string]lineState{}, map[string]*strings.Builder{}
		one, other := newPlanner(s), newPlanner(s)
		f := newSealer(1)
		for range 1 + rnd.IntN(6) {
			recs := make([]rec, 1+rnd.IntN(8))
			for i := range recs {
				recs[i] = randomRec(rnd)
				name := "all"
				if !mixes {
					name = recs[i].host + "/" + recs[i].path
				}
				if want[name] == nil {
					want[name], got[name] = &model{}, &strings.Builder{}
				}
				want[name].add(recs[i], exact, mixes)
			}
			b := f.seal(recs...)
			p, err := one.build(b)
			must(t, err)
			again, err := other.build(b)
			must(t, err)
			for i := range p.files {
				pf := &p.files[i]
				front, after, _ := pf.join(state[pf.name])
				text := string(front)
				for _, seg := range pf.segs {
					text += string(seg)
				}
				if int64(len(text)) != pf.n+int64(len(front)) {
					t.Fatalf("round %d: %d bytes planned, %d rendered", round, pf.n, len(text))
				}
				q := &again.files[i]
				if second, left, _ := q.join(state[pf.name]); q.n != pf.n || q.path != pf.path || left != after || string(second) != string(front) {
					t.Fatalf("round %d: a second plan of %s differs", round, pf.path)
				}
				got[pf.name].WriteString(text)
				state[pf.name] = after
			}
			p.release()
			again.release()
		}
		for name := range want {
			if got[name].String() != want[name].text.String() {
				t.Fatalf("seed %d, round %d, %s as %q:\n got  %q\n want %q", seed, round, file, format, got[name], want[name].text.String())
			}
		}
	}
}

func randomRec(rnd *rand.Rand) rec {
	flags := []uint16{0, 0, 0, record.Unterminated, record.Break, record.PieceFirst, record.PieceMiddle, record.PieceLast, record.Binary, record.Break | record.Unterminated}
	r := rec{host: "h", path: string(rune('a' + rnd.IntN(2))), pid: rnd.Uint32N(3), flags: flags[rnd.IntN(len(flags))]}
	if rnd.IntN(6) == 0 { // the end of what had left before, and others without bytes
		ends := []uint16{record.Unterminated, record.Unterminated, record.Binary, record.Unterminated | record.Break}
		if r.flags = record.PieceLast | ends[rnd.IntN(len(ends))]; rnd.IntN(8) == 0 {
			r.flags = record.PieceFirst | record.Break*uint16(rnd.IntN(2))
		}
		return r
	}
	for range 1 + rnd.IntN(4) {
		r.data += strings.Repeat(string(rune('x'+rnd.IntN(2))), rnd.IntN(3)*rnd.IntN(200)) + [...]string{"\n", "\r\n", "\r", "\x00\n"}[rnd.IntN(4)]
	}
	if rnd.IntN(2) == 0 || r.flags&(record.PieceFirst|record.PieceMiddle|record.Unterminated) != 0 {
		r.data += "end"
	}
	return r
}

// rendered is what records make of the files of an output, a batch for each of them, or one for all.
func rendered(t *testing.T, s *set, oneBatch bool, recs ...rec) map[string]string {
	t.Helper()
	pl, f := newPlanner(s), newSealer(1)
	state, got := map[string]lineState{}, map[string]string{}
	for len(recs) > 0 {
		n := 1
		if oneBatch {
			n = len(recs)
		}
		p, err := pl.build(f.seal(recs[:n]...))
		must(t, err)
		for i := range p.files {
			pf := &p.files[i]
			front, after, _ := pf.join(state[pf.name])
			for _, seg := range append([][]byte{front}, pf.segs...) {
				got[pf.name] += string(seg)
			}
			state[pf.name] = after
		}
		p.release()
		recs = recs[n:]
	}
	return got
}

// endless are a line above max_line and a binary record that had left in pieces when their files
// were closed, so that their ends have no bytes, beside lines of another source.
var endless = []rec{
	{host: "h", path: "a", data: "long", flags: record.PieceFirst},
	{host: "h", path: "a", data: " line", flags: record.PieceMiddle},
	{host: "h", path: "a", flags: record.PieceLast | record.Unterminated},
	{host: "h", path: "b", data: "one\ntwo", flags: record.PieceFirst | record.Binary},
	{host: "h", path: "b", flags: record.PieceLast | record.Binary},
	{host: "h", path: "b", data: "three", flags: record.PieceFirst | record.Binary},
	{host: "h", path: "a", data: "next\n"},
	{host: "h", path: "b", flags: record.PieceLast | record.Binary}, // nothing is left to be ended
	{host: "h", path: "a", data: "last", flags: record.PieceFirst},
	{host: "h", path: "a", flags: record.PieceLast | record.Unterminated},
}

// TestAnEndWithoutBytesWasPassedOver: what the format has behind %L was missing in front of the
// line feed, and the last line of a file had neither. A set that an older version stored renders
// as it did, or a redo would not find what it had written.
func TestAnEndWithoutBytesWasPassedOver(t *testing.T) {
	for _, c := range []struct{ file, format, name, want, before string }{
		{
			"all", "<%f %L>", "all",
			"<a long line>\n<b one>\n<b two>\n<b three\n<a next>\n<a last>\n",
			"<a long line\n<b one>\n<b two\n<b three\n<a next>\n<a last",
		},
		{"%H/%F", "<%f %L>", "h/a", "<a long line>\n<a next>\n<a last>\n", "<a long line\n<a next>\n<a last"},
		{"%H/%F", "<%f %L>", "h/b", "<b one>\n<b two>\n<b three>\n", "<b one>\n<b two\n<b three"},
		{"all", "%L", "all", "long line\none\ntwo\nthree\nnext\nlast\n", "long line\none\ntwo\nthree\nnext\nlast"},
		{"%H/%F", "%L", "h/a", "long linenext\nlast", "long linenext\nlast"}, // byte for byte
		{"%H/%F", "%L", "h/b", "one\ntwothree", "one\ntwothree"},
	} {
		now, err := newSet([]Output{output1("/d", func(o *Output) { o.File, o.Format = c.file, c.format })})
		must(t, err)
		then, err := parseSet(bytes.Replace(now.raw, []byte(`"version":2`), []byte(`"version":1`), 1))
		must(t, err)
		for _, one := range []bool{true, false} {
			if got := rendered(t, now, one, endless...)[c.name]; got != c.want {
				t.Errorf("%s by %q (one batch: %v):\n got  %q\n want %q", c.name, c.format, one, got, c.want)
			}
			if got := rendered(t, then, one, endless...)[c.name]; got != c.before {
				t.Errorf("%s by %q as an older version stored it:\n got  %q\n want %q", c.name, c.format, got, c.before)
			}
		}
	}
}

// TestAnEndWithoutBytesCutTheLineOfAnotherWriter: where that line began, it had been cut off already.
func TestAnEndWithoutBytesCutTheLineOfAnotherWriter(t *testing.T) {
	for _, c := range []struct{ file, format, want string }{
		{"%H/%F", "%L", "one\nline two\n"},
		{"all", "%L", "one\nline two\n"},
		{"%H/%F", "[%F] %L (%P)", "[a] one\n[a] line two (2)\n"},
	} {
		s, err := newSet([]Output{output1("/d", func(o *Output) { o.File, o.Format = c.file, c.format })})
		must(t, err)
		for _, one := range []bool{true, false} {
			for name, got := range rendered(t, s, one,
				rec{host: "h", path: "a", data: "one", pid: 1, flags: record.PieceFirst},
				rec{host: "h", path: "a", data: "line ", pid: 2, flags: record.PieceFirst | record.Break},
				rec{host: "h", path: "a", pid: 1, flags: record.PieceLast | record.Unterminated | record.Break},
				rec{host: "h", path: "a", data: "two\n", pid: 2, flags: record.PieceLast}) {
				if got != c.want {
					t.Errorf("%s by %q (one batch: %v): got %q, want %q", name, c.format, one, got, c.want)
				}
			}
		}
	}
}

// TestABeginningWithoutBytesWasJoinedWithTheLineOfAnotherWriter: a filter had made nothing of the
// beginning of a long line. That it begins one, and not the line of another writer of the path, is
// said by its first piece, which was passed over.
func TestABeginningWithoutBytesWasJoinedWithTheLineOfAnotherWriter(t *testing.T) {
	for file, want := range map[string]string{"%H/%F": "one\ntwo\n", "all": "one\ntwo\n"} {
		for _, flags := range []uint16{record.Unterminated, record.PieceFirst} {
			s, err := newSet([]Output{output1("/d", func(o *Output) { o.File = file })})
			must(t, err)
			for _, one := range []bool{true, false} {
				for name, got := range rendered(t, s, one,
					rec{host: "h", path: "a", data: "one", flags: flags},
					rec{host: "h", path: "a", flags: record.PieceFirst | record.Break},
					rec{host: "h", path: "a", data: "two\n", flags: record.PieceLast}) {
					if got != want {
						t.Errorf("%s, flags %x: got %q, want %q", name, flags, got, want)
					}
				}
			}
		}
	}
}
