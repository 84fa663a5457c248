package sink

import (
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/record"
)

// object is a line of format = "json".
type object struct {
	Host, Path, File, Time, Seq string
	PID                         uint32
	TimeNS                      int64 `json:"time_ns"`
	Flags                       []string
	Data                        *string
	Base64                      *string `json:"data_base64"`
	Exe, Cgroup                 string
}

func (o *object) data(t *testing.T) string {
	t.Helper()
	if o.Data != nil {
		return *o.Data
	}
	b, err := base64.StdEncoding.DecodeString(*o.Base64)
	must(t, err)
	return string(b)
}

// TestObjectsHaveEveryByteOnce: whatever the records are, each line of the file is an object,
// and what the objects of a source hold, with the line ends that follow them, is what its
// records held; what has no end gets a line feed.
func TestObjectsHaveEveryByteOnce(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	for range 300 {
		s, err := newSet([]Output{output1("/d", func(o *Output) { o.Format, o.File = "json", "all" })})
		must(t, err)
		pl, f := newPlanner(s), newSealer(1)
		want, got, numbers := map[string][]string{}, map[string][]string{}, map[string]bool{}
		for range 1 + rnd.IntN(4) {
			recs := make([]rec, 1+rnd.IntN(8))
			for i := range recs {
				recs[i] = randomRec(rnd)
				if rnd.IntN(4) == 0 {
					recs[i].data = "\xff" + recs[i].data
				}
				want[recs[i].path] = append(want[recs[i].path], objectsOf(recs[i])...)
			}
			p, err := pl.build(f.seal(recs...))
			must(t, err)
			if len(p.files) == 0 { // beginnings without bytes alone
				continue
			}
			pf := &p.files[0]
			if front, after, split := pf.join(lineState{open: true, mid: 1}); string(front) != "\n" || split || after != (lineState{}) {
				t.Fatalf("an object begins with %q after an open line, split %v, and leaves %+v", front, split, after)
			}
			var text strings.Builder
			for _, seg := range pf.segs {
				text.Write(seg)
			}
			for line := range strings.Lines(text.String()) {
				var o object
				if err := json.Unmarshal([]byte(line), &o); err != nil {
					t.Fatalf("%v: %q", err, line)
				}
				if o.Host != "h" || o.File != o.Path || numbers[o.Seq] || slices.Contains(o.Flags, "break") {
					t.Fatalf("the object %q", line)
				}
				numbers[o.Seq] = true
				got[o.Path] = append(got[o.Path], o.data(t)+line[strings.LastIndexByte(line, '}')+1:])
			}
			p.release()
		}
		for path := range want {
			if !slices.Equal(got[path], want[path]) {
				t.Fatalf("%s:\n got  %q\n want %q", path, got[path], want[path])
			}
		}
	}
}

// objectsOf are the data of the objects of a record, with the line end that each is to have.
func objectsOf(r rec) (all []string) {
	if r.data == "" && r.flags&record.PieceLast == 0 {
		return nil
	}
	if r.data == "" || r.flags&record.Binary != 0 {
		return []string{r.data + "\n"}
	}
	for line := range strings.Lines(r.data) {
		if !strings.HasSuffix(line, "\n") {
			line += "\n" // a CR before it is data
		}
		all = append(all, line)
	}
	return all
}

// TestFlagsStandWithTheLineTheyMean: of a record with several lines only the first ends a long
// line, and only the last begins one, or has no end.
func TestFlagsStandWithTheLineTheyMean(t *testing.T) {
	s, err := newSet([]Output{output1("/d", func(o *Output) { o.Format, o.File = "json", "all" })})
	must(t, err)
	p, err := newPlanner(s).build(newSealer(1).seal(
		rec{host: "h", path: "p", data: "1", flags: record.PieceFirst | record.Opener},
		rec{host: "h", path: "p", data: "2", flags: record.PieceMiddle | record.Opener},
		rec{host: "h", path: "p", data: "3\na\n", flags: record.PieceLast | record.Opener},
		rec{host: "h", path: "p", data: "b\nc", flags: record.Unterminated | record.Break},
		rec{host: "h", path: "p", data: "d\ne\x00", flags: record.Binary},
		rec{host: "h", path: "p", data: "4", flags: record.Binary | record.PieceFirst},
		rec{host: "h", path: "p", flags: record.Binary | record.PieceLast}, // all of it had left before the flush
	))
	must(t, err)
	var got []string
	text := ""
	for _, seg := range p.files[0].segs {
		text += string(seg)
	}
	for line := range strings.Lines(text) {
		var o object
		must(t, json.Unmarshal([]byte(line), &o))
		got = append(got, o.data(t)+" "+strings.Join(o.Flags, "+"))
	}
	if want := []string{"1 first-piece+opener", "2 middle-piece+opener", "3 last-piece+opener", "a opener", "b ", "c unterminated", "d\ne\x00 binary", "4 first-piece+binary", " last-piece+binary"}; !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
