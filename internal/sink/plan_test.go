package sink

import (
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
				front, _ := pf.lead.bytes(state[pf.name])
				text := string(front)
				for _, seg := range pf.segs {
					text += string(seg)
				}
				if int64(len(text)) != pf.n+int64(len(front)) {
					t.Fatalf("round %d: %d bytes planned, %d rendered", round, pf.n, len(text))
				}
				if q := &again.files[i]; q.n != pf.n || q.path != pf.path || q.after != pf.after {
					t.Fatalf("round %d: a second plan of %s differs", round, pf.path)
				}
				got[pf.name].WriteString(text)
				state[pf.name] = pf.after
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
	for range 1 + rnd.IntN(4) {
		r.data += strings.Repeat(string(rune('x'+rnd.IntN(2))), rnd.IntN(3)*rnd.IntN(200)) + [...]string{"\n", "\r\n", "\r", "\x00\n"}[rnd.IntN(4)]
	}
	if rnd.IntN(2) == 0 || r.flags&(record.PieceFirst|record.PieceMiddle|record.Unterminated) != 0 {
		r.data += "end"
	}
	return r
}
