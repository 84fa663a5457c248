package sink

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// lateRig is a late sink over a queue that somebody else fills.
type lateRig struct {
	*Sink
	q   *queue.Queue
	dir string
}

// openLate opens the queue and the sink below dir. Route 1 is for the output "output/a", 2 for
// "output/b", 3 for both.
func openLate(t *testing.T, dir string) *lateRig {
	t.Helper()
	r := &lateRig{dir: dir}
	var err error
	r.q, err = queue.Open(filepath.Join(dir, "queue"), queue.Options{Cursors: []string{"forward", "apply"}, Copies: []string{"apply"}})
	must(t, err)
	outs := []Output{
		output1(filepath.Join(dir, "out"), func(o *Output) { o.File, o.Name = "a/%F", "output/a" }),
		output1(filepath.Join(dir, "out"), func(o *Output) { o.File, o.Name = "b/%F", "output/b" }),
	}
	r.Sink, err = Open(t.Context(), Options{
		Queue: r.q, Cursor: "apply", Outputs: outs, DeadDir: filepath.Join(dir, "dead"), Late: true,
		Members: func(route uint32) []string {
			return map[uint32][]string{1: {"output/a"}, 2: {"output/b"}, 3: {"output/a", "output/b"}}[route]
		},
	})
	must(t, err)
	return r
}

func (r *lateRig) close(t *testing.T) {
	t.Helper()
	must(t, r.q.Close())
	must(t, r.Close())
}

func (r *lateRig) submit(t *testing.T, b batch.Sealed) {
	t.Helper()
	_, err := r.q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{{Batch: b}}})
	must(t, err)
}

func (r *lateRig) want(t *testing.T, name, want string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(r.dir, "out", name))
	if want == "" && os.IsNotExist(err) {
		return
	}
	if string(got) != want {
		t.Errorf("%s holds %q, %v, want %q", name, got, err, want)
	}
}

func places(q *queue.Queue) (n int) {
	q.Range(placePrefix, func(string, []byte) bool { n++; return true })
	return n
}

// TestALateSinkWritesWhatItsRouteNames, and forgets the places once it is on disk; a batch
// that was queued before the sink was there is written too.
func TestALateSinkWritesWhatItsRouteNames(t *testing.T) {
	dir := t.TempDir()
	r := openLate(t, dir)
	from := newSealer(1)
	put := func(route uint32, line string) {
		from.lane.Route = route
		r.submit(t, from.seal(rec{host: "h", path: "f", data: line}))
	}
	put(1, "one\n")
	must(t, r.q.Flush(t.Context()))
	r.close(t)
	r = openLate(t, dir)
	stop := (&rig{Sink: r.Sink}).runs(t)
	for _, route := range []uint32{2, 3, 0, 1} {
		put(route, fmt.Sprintf("route %d\n", route))
	}
	must(t, r.q.Flush(t.Context()))
	must(t, r.Drain(t.Context()))
	stop()
	r.want(t, "a/f", "one\nroute 3\nroute 1\n")
	r.want(t, "b/f", "route 2\nroute 3\n")
	must(t, r.q.Flush(t.Context()))
	if n := places(r.q); n != 0 {
		t.Errorf("%d places are kept of what is on disk", n)
	}
	if st := r.Stats(); st.UnmatchedRecords != 1 || st.PossibleDoubles != 0 {
		t.Errorf("stats %+v", st)
	}
	r.close(t)
}

// TestPlacesOutliveTheProcess: what has places goes there again, in whatever state the file
// is, and what has none goes behind it.
func TestPlacesOutliveTheProcess(t *testing.T) {
	dir := t.TempDir()
	from := newSealer(1)
	from.lane.Route = 1
	r := openLate(t, dir)
	for i := range 3 {
		r.submit(t, from.seal(rec{host: "h", path: "f", data: fmt.Sprintf("line %d\n", i)}))
	}
	must(t, r.q.Flush(t.Context()))
	first, err := r.applier.cur.Next(t.Context())
	must(t, err)
	second, err := r.applier.cur.Next(t.Context())
	must(t, err)
	must(t, r.placeLate(t.Context(), []queue.Item{first, second})) // killed here: nothing is written
	if n := places(r.q); n != 2 {
		t.Fatalf("%d places, want 2", n)
	}
	r.close(t)
	must(t, os.WriteFile(filepath.Join(dir, "out/a/f"), []byte("line 0\nli"), 0o644)) // or in the middle of the second
	r = openLate(t, dir)
	r.want(t, "a/f", "line 0\nline 1\n")
	stop := (&rig{Sink: r.Sink}).runs(t)
	must(t, r.Drain(t.Context()))
	stop()
	r.want(t, "a/f", "line 0\nline 1\nline 2\n")
	if st := r.Stats(); st.PossibleDoubles != 0 || st.Generations != 0 {
		t.Errorf("stats %+v", st)
	}
	r.close(t)
}

// lateCursor gives nothing before the first one who asks is out of patience.
type lateCursor struct {
	cursor
	once sync.Once
}

func (c *lateCursor) Next(ctx context.Context) (queue.Item, error) {
	c.once.Do(func() { <-ctx.Done() })
	return c.cursor.Next(ctx)
}

// TestPlacesAreKeptForABatchThatTheQueueIsSlowToGive: the disk takes its time, the process is frozen,
// or much that expired is passed first. It is not gone, and stands once.
func TestPlacesAreKeptForABatchThatTheQueueIsSlowToGive(t *testing.T) {
	r, from := openLate(t, t.TempDir()), newSealer(1)
	from.lane.Route = 1
	b := from.seal(rec{host: "h", path: "f", data: "line\n"})
	r.submit(t, b)
	must(t, r.q.Flush(t.Context()))
	must(t, r.placeLate(t.Context(), []queue.Item{{Seq: 1, Entry: queue.Entry{Batch: b}}})) // by an earlier run
	r.applier.cur = &lateCursor{cursor: r.applier.cur}
	must(t, r.applier.redoAll(t.Context()))
	must(t, r.q.Flush(t.Context()))
	if n := places(r.q); n != 1 {
		t.Errorf("%d places are kept of a batch that is queued, want 1", n)
	}
	r.want(t, "a/f", "line\n")
	r.close(t)
}

// TestABatchThatWasSealedAgainKeepsItsPlace, be it written before a kill or not: the output had it
// in hand when it was replaced, and has it under its old id after that.
func TestABatchThatWasSealedAgainKeepsItsPlace(t *testing.T) {
	for name, written := range map[string]bool{"placed": false, "written": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			from := newSealer(1)
			from.lane.Route = 1
			b := from.seal(rec{host: "h", path: "f", data: "line\n"})
			again := sealAgain(t, queue.Entry{Batch: b})
			r := openLate(t, dir)
			r.submit(t, b)
			must(t, r.q.Flush(t.Context()))
			item, err := r.applier.cur.Next(t.Context())
			must(t, err)
			_, err = r.q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{again}, Replace: []uint64{item.Seq}})
			must(t, err)
			items := []queue.Item{item}
			must(t, r.placeLate(t.Context(), items))
			if written {
				must(t, r.applier.apply(t.Context(), items[0]))
			}
			must(t, r.q.Flush(t.Context()))
			r.close(t)
			r = openLate(t, dir)
			stop := (&rig{Sink: r.Sink}).runs(t)
			must(t, r.Drain(t.Context()))
			stop()
			r.want(t, "a/f", "line\n")
			must(t, r.q.Flush(t.Context()))
			if n := places(r.q); n != 0 {
				t.Errorf("%d places are left", n)
			}
			r.close(t)
		})
	}
}

// TestALateSinkLeavesTheNoteOfARepair to who fills the queue, and counts what may stand twice.
func TestALateSinkLeavesTheNoteOfARepair(t *testing.T) {
	dir := t.TempDir()
	r := openLate(t, dir)
	_, err := r.q.Submit(t.Context(), &queue.Txn{Set: []queue.KV{{Key: queue.RepairedKey, Value: []byte("{}")}}})
	must(t, err)
	must(t, r.q.Flush(t.Context()))
	r.close(t)
	must(t, os.MkdirAll(filepath.Join(dir, "out/a"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "out/a/f"), []byte("old\n"), 0o644))
	r = openLate(t, dir)
	if _, ok := r.q.Get(queue.RepairedKey); !ok {
		t.Error("the note is gone before capture has read it")
	}
	stop := (&rig{Sink: r.Sink}).runs(t)
	from := newSealer(1)
	from.lane.Route = 1
	r.submit(t, from.seal(rec{host: "h", path: "f", data: "new\n"}))
	must(t, r.q.Flush(t.Context()))
	must(t, r.Drain(t.Context()))
	stop()
	r.want(t, "a/f", "old\nnew\n")
	if st := r.Stats(); st.PossibleDoubles != 1 {
		t.Errorf("%d possible doubles, want the one file that was there", st.PossibleDoubles)
	}
	r.close(t)
}

// TestPlacesOfADroppedBatchAreForgotten by the next start.
func TestPlacesOfADroppedBatchAreForgotten(t *testing.T) {
	dir := t.TempDir()
	r := openLate(t, dir)
	_, err := r.q.Submit(t.Context(), &queue.Txn{Set: []queue.KV{{Key: placePrefix + strings.Repeat("0", 8), Value: []byte("x")}}})
	must(t, err)
	must(t, r.q.Flush(t.Context()))
	r.close(t)
	r = openLate(t, dir)
	if n := places(r.q); n != 0 {
		t.Errorf("%d places are left", n)
	}
	r.close(t)
}
