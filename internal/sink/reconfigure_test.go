package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/output"
	"ftfuse/internal/record"
	"ftfuse/queue"
)

// runs lets the rig's sink work until stop is called, or the test ends.
func (r *rig) runs(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Apply(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("apply: %v", err)
		}
	})
	wg.Go(func() {
		if err := r.Checkpoints(ctx, func(...batch.ID) {}); err != nil {
			t.Errorf("checkpoints: %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// take takes and submits a batch.
func (r *rig) take(t *testing.T, b batch.Sealed) {
	t.Helper()
	txn, err := r.Take(b, "a test")
	if err == nil {
		_, err = r.q.Submit(t.Context(), txn)
	}
	if err != nil {
		t.Errorf("take %v: %v", b.ID, err)
	}
}

// drain waits until all is written.
func (r *rig) drain(t *testing.T) {
	t.Helper()
	must(t, r.q.Flush(t.Context()))
	must(t, r.Drain(t.Context()))
}

// linesBelow counts each line of all files below dir.
func linesBelow(t *testing.T, dir string) map[string]int {
	t.Helper()
	got := map[string]int{}
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		for line := range strings.Lines(string(raw)) {
			got[line]++
		}
		return err
	}))
	return got
}

// onceEach checks that lines a-0 … of each of the writers stand once.
func onceEach(t *testing.T, got map[string]int, writers, lines int) {
	t.Helper()
	wrong := 0
	for w := range writers {
		for i := range lines {
			if n := got[fmt.Sprintf("%d-%d\n", w, i)]; n != 1 {
				wrong++
				t.Logf("line %d-%d stands %d times", w, i, n)
			}
		}
	}
	if wrong > 0 || len(got) != writers*lines {
		t.Errorf("%d lines are wrong; %d different ones, want %d", wrong, len(got), writers*lines)
	}
}

// TestReconfigureUnderLoad: outputs change again and again while batches come and are
// written, and each line stands once, below the one directory or the other.
func TestReconfigureUnderLoad(t *testing.T) {
	r := newRig(t)
	stop := r.runs(t)
	const writers, lines = 4, 400
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			from := newSealer(byte(w + 1))
			for i := range lines {
				r.take(t, from.seal(rec{host: "h", path: "f", data: fmt.Sprintf("%d-%d\n", w, i)}))
			}
		})
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	changes := 0
	for more := true; more; changes++ {
		dir := r.out([]string{"one", "two"}[changes%2])
		must(t, r.Reconfigure([]Output{output1(dir, func(o *Output) { o.File = "%F" })}))
		select {
		case <-ended:
			more = false
		case <-time.After(time.Millisecond):
		}
	}
	r.drain(t)
	stop()
	onceEach(t, linesBelow(t, r.out()), writers, lines)
	if st := r.Stats(); st.PossibleDoubles != 0 || st.Generations != 0 {
		t.Errorf("%d possible doubles, %d generations after %d changes", st.PossibleDoubles, st.Generations, changes)
	}
}

// TestWhatWasTakenBeforeAReconfigureGoesWhereItWasAssigned: also when the process that took
// it was killed, and the next one has the new outputs only.
func TestWhatWasTakenBeforeAReconfigureGoesWhereItWasAssigned(t *testing.T) {
	dir := t.TempDir()
	outs := func(format string) []Output {
		return []Output{output1(filepath.Join(dir, "out"), func(o *Output) { o.File, o.Format = "f", format })}
	}
	from := newSealer(1)
	r := openRig(t, dir, outs("old %L"))
	txn, err := r.Take(from.seal(rec{host: "h", path: "f", data: "1\n"}), "a test") // on its way while they change
	must(t, err)
	must(t, r.Reconfigure(outs("new %L")))
	_, err = r.q.Submit(t.Context(), txn)
	must(t, err)
	must(t, r.Reconfigure(outs("old %L")))
	r.take(t, from.seal(rec{host: "h", path: "f", data: "2\n"}))
	must(t, r.Reconfigure(outs("new %L")))
	r.take(t, from.seal(rec{host: "h", path: "f", data: "3\n"}))
	must(t, r.q.Flush(t.Context()))
	must(t, r.q.Close()) // nothing was applied
	must(t, r.Close())
	r = openRig(t, dir, outs("new %L"))
	defer r.Close()
	defer r.q.Close()
	raw, err := os.ReadFile(filepath.Join(dir, "out", "f"))
	must(t, err)
	if want := "old 1\nold 2\nnew 3\n"; string(raw) != want {
		t.Errorf("the file has %q, want %q", raw, want)
	}
}

// openRig opens the queue and the sink of dir, and does what an earlier run left to be done.
func openRig(t *testing.T, dir string, outputs []Output) *rig {
	t.Helper()
	r := &rig{dir: dir}
	var err error
	r.q, err = queue.Open(filepath.Join(dir, "queue"), queue.Options{Dedupe: true, Cursors: []string{"apply"}})
	must(t, err)
	r.Sink, err = Open(t.Context(), Options{Queue: r.q, Cursor: "apply", Outputs: outputs, DeadDir: filepath.Join(dir, "dead")})
	must(t, err)
	return r
}

// TestWhatAnOlderVersionAssignedIsWrittenAsItWouldHave: its end without bytes has no place in the
// file, whether it had been written before that version was killed or not; what comes to the
// newer one ends as it should, also a line that the older one began.
func TestWhatAnOlderVersionAssignedIsWrittenAsItWouldHave(t *testing.T) {
	for _, written := range []bool{true, false} {
		dir, from := t.TempDir(), newSealer(1)
		outs := []Output{output1(filepath.Join(dir, "out"), func(o *Output) { o.File, o.Format = "f", "<%L>" })}
		r := openRig(t, dir, outs)
		older, err := parseSet(bytes.Replace(r.current.Load().set.raw, []byte(`"version":2`), []byte(`"version":1`), 1))
		must(t, err)
		then := &outputs{set: older}
		then.planners.New = func() any { return newPlanner(older) }
		r.current.Store(then)
		const first, last = record.PieceFirst | record.Binary, record.PieceLast | record.Binary
		r.take(t, from.seal(rec{host: "h", path: "f", data: "1", flags: first}))
		r.take(t, from.seal(rec{host: "h", path: "f", flags: last}))
		r.take(t, from.seal(rec{host: "h", path: "f", data: "2", flags: first}, rec{host: "h", path: "f", flags: last}))
		r.take(t, from.seal(rec{host: "h", path: "f", data: "3", flags: first}))
		must(t, r.q.Flush(t.Context()))
		was := "<1\n<2\n<3"
		must(t, r.q.Close())
		must(t, r.Close())
		if written { // and not acked
			must(t, os.MkdirAll(filepath.Join(dir, "out"), 0o755))
			must(t, os.WriteFile(filepath.Join(dir, "out", "f"), []byte(was), 0o644))
		}
		r = openRig(t, dir, outs)
		stop := r.runs(t)
		r.take(t, from.seal(rec{host: "h", path: "f", flags: last}))
		r.take(t, from.seal(rec{host: "h", path: "f", flags: last})) // nothing is left to be ended
		r.take(t, from.seal(rec{host: "h", path: "f", data: "4", flags: first}, rec{host: "h", path: "f", flags: last}))
		r.drain(t)
		stop()
		must(t, r.Close())
		must(t, r.q.Close())
		raw, err := os.ReadFile(filepath.Join(dir, "out", "f"))
		must(t, err)
		if want := was + ">\n<4>\n"; string(raw) != want {
			t.Errorf("the file, written before: %v, has %q, want %q", written, raw, want)
		}
		if st := r.Stats(); st.PossibleDoubles != 0 {
			t.Errorf("%d possible doubles", st.PossibleDoubles)
		}
	}
}

// TestABadReconfigureChangesNothing: and gives back the directories it had taken.
func TestABadReconfigureChangesNothing(t *testing.T) {
	r := newRig(t)
	taken := filepath.Join(r.dir, "taken")
	other, err := output.OpenRoot(taken, output.Options{})
	must(t, err)
	defer other.Close()
	fresh := filepath.Join(r.dir, "fresh")
	for what, bad := range map[string]Output{
		"a directory of another process": output1(taken, nil),
		"a template":                     output1(r.out(), func(o *Output) { o.File = "%?" }),
		"a glob":                         output1(r.out(), func(o *Output) { o.Path = "[" }),
	} {
		if err := r.Reconfigure([]Output{output1(fresh, nil), bad}); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	again, err := output.OpenRoot(fresh, output.Options{})
	if err != nil {
		t.Fatalf("the directory of a refused output: %v", err)
	}
	must(t, again.Close())
	stop := r.runs(t)
	r.take(t, newSealer(1).seal(rec{host: "h", path: "f", data: "0-0\n"}))
	r.drain(t)
	stop()
	onceEach(t, linesBelow(t, r.out()), 1, 1)
}

// TestADirectoryWithoutOutputsIsUnlocked: once what was assigned there is on disk, and it
// can be had again.
func TestADirectoryWithoutOutputsIsUnlocked(t *testing.T) {
	r := newRig(t)
	free := func() bool {
		root, err := output.OpenRoot(r.out(), output.Options{})
		if err != nil {
			return false
		}
		must(t, root.Close())
		return true
	}
	from := newSealer(1)
	r.take(t, from.seal(rec{host: "h", path: "f", data: "0-0\n"}))
	must(t, r.Reconfigure([]Output{output1(filepath.Join(r.dir, "new"), nil)}))
	if free() {
		t.Error("the directory is unlocked before what was assigned there is written")
	}
	r.o.CheckpointEvery = time.Millisecond
	stop := r.runs(t)
	r.drain(t)
	stop() // with a checkpoint
	if !free() {
		t.Error("the directory is still locked")
	}
	must(t, r.Reconfigure([]Output{output1(r.out(), nil)}))
	if free() {
		t.Error("the directory is not locked again")
	}
	onceEach(t, linesBelow(t, r.out()), 1, 1)
}

// TestAFileThatIsForgottenOnItsWayIsNotLost: between the look at its name and the commit.
func TestAFileThatIsForgottenOnItsWayIsNotLost(t *testing.T) {
	r := newRig(t)
	from := newSealer(1)
	stop := r.runs(t)
	r.take(t, from.seal(rec{host: "h", path: "f", data: "0-0\n"}))
	r.drain(t)
	stop()
	txn, err := r.Take(from.seal(rec{host: "h", path: "f", data: "0-1\n"}), "a test")
	must(t, err)
	r.table.mu.Lock()
	r.table.forgetIdle()
	r.table.mu.Unlock()
	_, err = r.q.Submit(t.Context(), txn)
	must(t, err)
	r.take(t, from.seal(rec{host: "h", path: "f", data: "0-2\n"}))
	stop = r.runs(t)
	r.drain(t)
	stop()
	onceEach(t, linesBelow(t, r.out()), 1, 3)
}

// TestReopenClosesWhatWaitsForNothing: a removed file's room comes back, and the next line
// goes to the file that has the name, without a look being due.
func TestReopenClosesWhatWaitsForNothing(t *testing.T) {
	r := newRig(t)
	from := newSealer(1)
	stop := r.runs(t)
	r.take(t, from.seal(rec{host: "h", path: "f", data: "0-0\n"}))
	r.drain(t)
	stop()
	must(t, os.Rename(r.out("h", "f"), r.out("h", "f.old")))
	for _, f := range r.table.files {
		f.checked = time.Now().Add(time.Hour)
	}
	if n := r.Stats().OpenFiles; n != 1 {
		t.Fatalf("%d files are open, want 1", n)
	}
	must(t, r.Reopen())
	if n := r.Stats().OpenFiles; n != 0 {
		t.Errorf("%d files are open after Reopen", n)
	}
	r.take(t, from.seal(rec{host: "h", path: "pending", data: "0-2\n"}))
	must(t, r.Reopen()) // closes it when it is written and synced
	stop = r.runs(t)
	r.drain(t)
	stop()
	if n := r.Stats().OpenFiles; n != 0 {
		t.Errorf("%d files are open after the checkpoint that followed a Reopen", n)
	}
	stop = r.runs(t)
	r.take(t, from.seal(rec{host: "h", path: "f", data: "0-1\n"}))
	r.drain(t)
	stop()
	onceEach(t, linesBelow(t, r.out()), 1, 3)
	if raw, err := os.ReadFile(r.out("h", "f")); err != nil || string(raw) != "0-1\n" {
		t.Errorf("the file has %q, %v", raw, err)
	}
}
