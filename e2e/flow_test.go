package e2e

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// stream is one file of one source.
type stream struct {
	src  *rig.Host
	file string
}

// out is where the stream comes out at an aggregator.
func (s stream) out(agg *rig.Host) string { return filepath.Join(agg.Out(), s.src.Name, s.file) }

// flow is the writers of every stream.
type flow struct {
	s       *site
	job     rig.Job
	writers map[stream][]*rig.Writer
	done    map[stream]*flowed
}

// flowed is what the writers of one stream did.
type flowed struct {
	plan    tally.Plan
	lines   int64   // given to write(2), all accepted
	longest float64 // of all write(2)s, ms
}

// startFlow starts count writers on every file of every source.
func (s *site) startFlow(count int, job rig.Job) *flow {
	s.t.Helper()
	f := &flow{s: s, job: job, writers: map[stream][]*rig.Writer{}, done: map[stream]*flowed{}}
	for _, h := range s.sources {
		for _, file := range s.files {
			for i := range count {
				job.Path, job.Writer, job.Clock = filepath.Join(h.Point(), file), i, true
				w, err := rig.StartWriter(bin, job)
				must(s.t, err)
				s.t.Cleanup(w.Kill)
				f.writers[stream{h, file}] = append(f.writers[stream{h, file}], w)
			}
		}
	}
	for _, all := range f.writers {
		for _, w := range all {
			must(s.t, w.Go())
		}
	}
	return f
}

// finish ends the writers. None may have seen an error.
func (f *flow) finish() {
	f.s.t.Helper()
	for _, all := range f.writers { // all at once
		for _, w := range all {
			w.Finish()
		}
	}
	for from, all := range f.writers {
		d := &flowed{plan: tally.Plan{Writers: len(all), Size: f.job.Size, Lines: 1}}
		var results []rig.Result
		for _, w := range all {
			r, err := w.Wait()
			if err != nil || len(r.Errors) > 0 {
				f.s.t.Fatalf("a writer on %s: %v %v", from.src.Name, err, r.Errors)
			}
			results = append(results, r)
			d.plan.Lines = max(d.plan.Lines, r.Lines)
			d.lines += int64(r.Lines)
			d.longest = max(d.longest, r.Longest)
		}
		for i, r := range results { // not written; a line that came all the same shows in the sum
			for n := r.Lines; n < d.plan.Lines; n++ {
				d.plan.Maybe = append(d.plan.Maybe, tally.Name{Writer: i, N: n})
			}
		}
		f.done[from] = d
	}
}

// longest is the longest write(2) of all writers in ms.
func (f *flow) longest() (most float64) {
	for _, d := range f.done {
		most = max(most, d.longest)
	}
	return most
}

// accepted is how many lines all writers wrote.
func (f *flow) accepted() (sum int64) {
	for _, d := range f.done {
		sum += d.lines
	}
	return sum
}

// verdict is what stands in the files of the aggregators.
type verdict struct {
	accepted int64
	lost     int64            // at no aggregator
	missing  map[string]int64 // at each: what is not there
	wrong    []string         // doubled, altered, unfinished at one aggregator
	disorder int64            // after a later line of the same writer: no fault where the way changed
	both     int64            // at more than one aggregator
	twice    map[string][]tag // by aggregator: the batches of lines that stand at others too
}

// tag is the name of a batch as %N writes it, without the number of the line.
type tag string

// count reads every file of every aggregator.
func (f *flow) count() (*verdict, error) {
	v := &verdict{missing: map[string]int64{}, twice: map[string][]tag{}, accepted: f.accepted()}
	for from, d := range f.done {
		var parts []*tally.Seen
		for _, g := range f.s.aggs {
			c, seen, err := part(from.out(g), d.plan)
			if err != nil {
				return nil, err
			}
			if c.Doubled+c.Altered+c.Partial > 0 {
				v.wrong = append(v.wrong, fmt.Sprintf("%s of %s at %s: %v", from.file, from.src.Name, g.Name, c))
			}
			v.missing[g.Name] += d.lines - c.Lines
			v.disorder += c.Disorder
			parts = append(parts, seen)
		}
		lost, twice := tally.Across(d.plan, parts...)
		v.lost += int64(len(lost))
		if len(lost) > 0 {
			v.wrong = append(v.wrong, fmt.Sprintf("%d lines of %s of %s are nowhere, the first is %v, the last %v", len(lost), from.file, from.src.Name, lost[0], lost[len(lost)-1]))
		}
		v.both += int64(len(twice))
		if err := f.tagTwice(v, from, twice); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// tagTwice notes the batches in which lines that stand at several aggregators came to each.
func (f *flow) tagTwice(v *verdict, from stream, twice []tally.Name) error {
	if len(twice) == 0 {
		return nil
	}
	want := make(map[tally.Name]bool, len(twice))
	for _, n := range twice {
		want[n] = true
	}
	for _, g := range f.s.aggs {
		text, err := os.ReadFile(from.out(g))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		seen := map[tag]bool{}
		for line := range strings.Lines(string(text)) {
			name, rest := tally.Tag([]byte(line))
			if n, ok := tally.Parse(rest); ok && want[n] {
				if id := tag(name[:strings.LastIndexByte(string(name), '-')]); !seen[id] {
					seen[id] = true
					v.twice[g.Name] = append(v.twice[g.Name], id)
				}
			}
		}
	}
	return nil
}

func outFile(agg, src *rig.Host) string { return stream{src, siteLoad}.out(agg) }

// part checks one output file; one that is not there has nothing.
func part(path string, plan tally.Plan) (tally.Count, *tally.Seen, error) {
	var lines io.Reader = strings.NewReader("")
	file, err := os.Open(path)
	if err == nil {
		defer file.Close()
		lines, err = tally.Untagged(file)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return tally.Count{}, nil, err
	}
	return tally.CheckSeen(lines, plan)
}

// settle waits until every line is where it has to be: at one aggregator at least or, each,
// at every one. It gives up when no byte came for a while.
func (f *flow) settle(each bool) *verdict {
	f.s.t.Helper()
	var v *verdict
	size, grew := int64(-1), time.Now()
	for {
		var err error
		v, err = f.count()
		must(f.s.t, err)
		var missing int64
		for _, n := range v.missing {
			missing += n
		}
		if v.lost == 0 && (!each || missing == 0) {
			return v
		}
		if now := f.bytes(); now != size {
			size, grew = now, time.Now()
		}
		if time.Since(grew) > patience {
			f.s.t.Fatalf("nothing came for %v; %d lines accepted, %d lost, missing %v: %v", patience, v.accepted, v.lost, v.missing, v.wrong)
		}
		must(f.s.t, rig.Wait(f.s.t.Context(), 200*time.Millisecond))
	}
}

// bytes is the size of all output files.
func (f *flow) bytes() (sum int64) {
	for _, g := range f.s.aggs {
		for from := range f.writers {
			if st, err := os.Stat(from.out(g)); err == nil {
				sum += st.Size()
			}
		}
	}
	return sum
}

// moves waits until some more bytes have come to any aggregator.
func (f *flow) moves(by int64) {
	f.s.t.Helper()
	from := f.bytes()
	eventually(f.s.t, patience, func() error {
		if now := f.bytes(); now < from+by {
			return fmt.Errorf("%d bytes came, want %d", now-from, by)
		}
		return nil
	})
}

// exact fails the test for whatever is not as it must be at the end; each says whether every
// aggregator must have every line. Whether lines may stand at two is flagged's to say.
func (f *flow) exact(v *verdict, each bool) {
	f.s.t.Helper()
	for _, w := range v.wrong {
		f.s.t.Error(w)
	}
	for name, n := range v.missing {
		if each && n != 0 {
			f.s.t.Errorf("%d of %d lines are not at %s", n, v.accepted, name)
		}
	}
	f.s.t.Logf("%d lines, %d lost, %d at two aggregators, %d out of order, longest write(2) %.1f ms", v.accepted, v.lost, v.both, v.disorder, f.longest())
}

// seeded is a source of chance that can be had again: FTFUSE_SEED.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("FTFUSE_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		must(t, err)
	}
	t.Logf("FTFUSE_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 4))
}
