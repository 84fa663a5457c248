package sink

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"ftfuse/internal/record"
)

// TestADeadLetterLackedWhatStandsBeforeItsFirstLine: what an operator appends from the letters of a
// file, one after the other, is what the file would have got.
func TestADeadLetterLackedWhatStandsBeforeItsFirstLine(t *testing.T) {
	for format, want := range map[string]string{
		"%L":           "one\ntwo\nlong line\nlast\nend\n",
		"[%F] %L (%P)": "[f] one (7)\n[f] two (7)\n[f] long line (7)\n[f] last (7)\n[f] end (7)\n",
	} {
		dir := t.TempDir()
		r := newRig(t, output1(dir, func(o *Output) { o.File, o.Format = "%F", format }))
		must(t, os.Mkdir(filepath.Join(dir, "f"), 0o755)) // no file can be there
		from := newSealer(1)
		for _, recs := range [][]rec{
			{{data: "one\n"}, {data: "two\n"}},
			{{data: "long", flags: record.PieceFirst}},
			{{data: " line\n", flags: record.PieceLast}},
			{{data: "la", flags: record.PieceFirst}, {data: "st", flags: record.PieceMiddle}},
			{{data: "\n", flags: record.PieceLast}, {data: "e", flags: record.PieceFirst}},
			{{data: "nd", flags: record.PieceMiddle}},
			{{flags: record.PieceLast | record.Unterminated}},
		} {
			for i := range recs {
				recs[i].host, recs[i].path, recs[i].pid = "h", "f", 7
			}
			_, err := r.Take(from.seal(recs...), "a test")
			must(t, err)
		}
		letters, err := filepath.Glob(filepath.Join(r.dir, "dead", "*.dead"))
		must(t, err)
		var got []byte
		for _, name := range letters {
			raw, err := os.ReadFile(name)
			must(t, err)
			got = append(got, raw[bytes.IndexByte(raw, '\n')+1:]...)
		}
		if string(got) != want {
			t.Errorf("format %q: the letters have\n%q, want\n%q", format, got, want)
		}
	}
}
