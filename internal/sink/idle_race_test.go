package sink

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/queue"
)

// TestForgottenAtTheMomentItIsUsed: records come, files are rotated, compressed and removed while
// names are forgotten as fast as can be. Whatever waits for the clock is known, and stored.
func TestForgottenAtTheMomentItIsUsed(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late-%v", late), func(t *testing.T) {
			one := Rotate{Size: 2 << 10, Every: time.Second, Keep: 3, Compress: "gzip"}
			r, submit := newHurried(t, one, late)
			stop := r.runs(t)
			rnd := rand.New(rand.NewPCG(1, 2))
			var all sync.WaitGroup
			want := make([]strings.Builder, 4)
			from := []*sealer{newSealer(1), newSealer(2), newSealer(3), newSealer(4)}
			for round := range 20 {
				before := r.Stats().Rotations
				for w := range want {
					seed := rnd.Uint64()
					all.Go(func() {
						rnd := rand.New(rand.NewPCG(seed, 1))
						from[w].lane.Route = 1
						for i := range 40 {
							line := fmt.Sprintf("%d-%06d %s\n", w, round*40+i, strings.Repeat("x", 50+rnd.IntN(100)))
							want[w].WriteString(line)
							submit(from[w].seal(rec{host: "h", path: fmt.Sprintf("f%d", w), data: line}))
						}
					})
				}
				all.Wait()
				r.drain(t)
				eventually(t, "a rotation", func() bool { return r.Stats().Rotations > before })
			}
			stop()
			r.known(t)
			for w := range want {
				name := fmt.Sprintf("f%d", w)
				info, err := os.Stat(r.out(name))
				if err == nil && info.Size() > 0 && r.rotor.series[r.out(name)] == nil {
					t.Errorf("%s has %d bytes, and is not known: the clock never rotates it", name, info.Size())
				}
				if names, got := inOrder(t, r.out(), name); !strings.HasSuffix(want[w].String(), got) || len(got) < 4<<10 {
					t.Errorf("%v have %d bytes, which are not the end of %d", names, len(got), want[w].Len())
				}
			}
			if st := r.Stats(); st.Rotations < 20 || st.RotateErrors > 0 || st.PossibleDoubles > 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// newHurried is a sink that forgets as fast as can be.
func newHurried(t *testing.T, one Rotate, late bool) (*rig, func(batch.Sealed)) {
	r := &rig{dir: t.TempDir()}
	var err error
	r.q, err = queue.Open(filepath.Join(r.dir, "queue"), queue.Options{Dedupe: !late, Cursors: []string{"apply"}})
	must(t, err)
	r.Sink, err = Open(t.Context(), Options{
		Queue: r.q, Cursor: "apply", Outputs: []Output{rotating(r.out(), one)}, DeadDir: filepath.Join(r.dir, "dead"), Late: late,
		CheckpointEvery: time.Millisecond, ForgetAfter: time.Nanosecond,
	})
	must(t, err)
	t.Cleanup(func() {
		must(t, r.q.Close())
		must(t, r.Close())
	})
	if !late {
		return r, func(b batch.Sealed) { r.take(t, b) }
	}
	return r, func(b batch.Sealed) {
		if _, err := r.q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{{Batch: b}}}); err != nil {
			t.Error(err)
		}
	}
}

// TestStoppedWhileNamesAreForgotten at each step: the next start knows the rotated files by the
// state or by their marks, with keep and numbers as they were.
func TestStoppedWhileNamesAreForgotten(t *testing.T) {
	for _, step := range []string{"rotate/marked", "rotate/forgotten"} {
		one := Rotate{Size: 1 << 20, Keep: 2}
		r := newRotating(t, one)
		from := newSealer(1)
		want := r.turns(t, from, 2, "f", "g")
		must(t, failpoint.Set(step, "error"))
		r.rotor.forgetAfter = time.Nanosecond
		r.rotor.dropAt = time.Time{}
		if err := r.rotor.dropIdle(t.Context()); !errors.Is(err, failpoint.ErrInjected) {
			t.Fatalf("%s: %v", step, err)
		}
		failpoint.Clear(step)
		must(t, r.q.Close())
		must(t, r.Close())
		r.reopen(t, rotating(r.out(), one))
		if n := r.known(t); n != map[string]int{"rotate/marked": 2, "rotate/forgotten": 0}[step] {
			t.Errorf("%s: %d names are known", step, n)
		}
		want += r.turns(t, from, 1, "f", "g")
		for _, name := range []string{"f", "g"} {
			names, got := inOrder(t, r.out(), name)
			if !strings.HasSuffix(want, got) || strings.Count(got, "\n") != 2 || !slices.Contains(names, name+".000003") {
				t.Errorf("%s: %v have %q, want the end of %q", step, names, got, want)
			}
		}
	}
}

// TestAnIntentIsForgotten: never, at whatever moment of a rotation names are forgotten.
func TestAnIntentIsForgotten(t *testing.T) {
	for step, point := range map[string]*failpoint.Point{"rotate/intended": fpIntended, "rotate/renamed": fpRenamed, "rotate/begun": fpBegun} {
		r, submit := newHurried(t, Rotate{Size: 1 << 10, Keep: 2}, false)
		must(t, failpoint.Set(step, "pause"))
		stop := r.runs(t)
		submit(newSealer(1).seal(rec{host: "h", path: "f", data: strings.Repeat("x", 2<<10) + "\n"}))
		eventually(t, step, func() bool { return point.Hits() > 0 })
		if step == "rotate/intended" { // the others are done
			r.rotor.mu.Lock()
			r.rotor.dropAt = time.Time{}
			r.rotor.mu.Unlock()
			must(t, r.rotor.dropIdle(t.Context()))
			r.known(t)
		}
		image := filepath.Join(r.dir, "image")
		must(t, os.CopyFS(image, os.DirFS(filepath.Join(r.dir, "queue"))))
		failpoint.Clear(step)
		r.drain(t)
		stop()
		q, err := queue.Open(image, queue.Options{Dedupe: true, Cursors: []string{"apply"}})
		must(t, err)
		raw, ok := q.Get(seriesKey(r.out("f")))
		if s, err := parseSeries(raw); !ok || err != nil || len(s.kept) != 1 || s.kept[0].number != 1 {
			t.Errorf("%s: stored is %+v, %v", step, s, err)
		}
		must(t, q.Close())
	}
}

// TestForgottenBetweenALookAndTheCommit: a name that a record comes for meanwhile, one whose files
// are worked on, one with bytes that are still to be written.
func TestForgottenBetweenALookAndTheCommit(t *testing.T) {
	r := newRotating(t, Rotate{Size: 1 << 20, Every: 24 * time.Hour})
	from := newSealer(1)
	r.turns(t, from, 1, "record", "work")
	r.feedLines(t, from, "bytes", 0, 10, 10)
	must(t, r.rotor.try(t.Context(), r.table.files[r.out("bytes")], true))
	must(t, os.Remove(r.out("bytes"))) // it has another name, and the next one is empty
	r.rotor.forgetAfter, r.rotor.at = time.Nanosecond, r.rotor.series[r.out("work")]
	busy := r.table.busyIDs()
	gone, err := r.rotor.leaveAll(time.Now(), r.rotor.resting(time.Now(), busy))
	must(t, err)
	if len(gone) != 1 || gone[0].s.name != "record" {
		t.Errorf("to be forgotten are %+v, want one", gone)
	}
	r.feedLines(t, from, "record", 0, 1, 1)
	must(t, r.rotor.strike(t.Context(), gone, busy))
	if n := r.known(t); n != 3 {
		t.Errorf("%d names are known, want 3", n)
	}
	r.rotor.at = nil
	stop := r.runs(t)
	r.drain(t)
	stop()
	if r.forgets(t); r.known(t) != 1 || r.rotor.series[r.out("record")] == nil {
		t.Errorf("known are %v, want the one that waits for the clock", r.rotor.series)
	}
}
