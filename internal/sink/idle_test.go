package sink

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/output"
)

// known returns how many series the rotor and the queue's state have, which must be the same.
func (r *rig) known(t *testing.T) int {
	t.Helper()
	must(t, r.q.Flush(t.Context()))
	var keys, paths []string
	r.q.Range(rotatePrefix, func(key string, _ []byte) bool { keys = append(keys, key); return true })
	r.rotor.mu.Lock()
	defer r.rotor.mu.Unlock()
	for path := range r.rotor.series {
		paths = append(paths, seriesKey(path))
	}
	slices.Sort(keys)
	if slices.Sort(paths); !slices.Equal(keys, paths) {
		t.Errorf("%d series are known, %d are stored, and they are not the same", len(paths), len(keys))
	}
	return len(keys)
}

// forgets lets time pass, in which nothing came, until there is nothing more to forget.
func (r *rig) forgets(t *testing.T) {
	t.Helper()
	r.rotor.forgetAfter = time.Nanosecond
	for last := -1; last != len(r.rotor.series); {
		last = len(r.rotor.series)
		r.rotor.dropAt = time.Time{}
		must(t, r.rotor.dropIdle(t.Context()))
	}
	r.rotor.forgetAfter = time.Hour
}

// turns rotates the files of paths n times, each with a line more, and has all that follows done.
// It returns the lines of each path.
func (r *rig) turns(t *testing.T, from *sealer, n int, paths ...string) string {
	t.Helper()
	var all strings.Builder
	for range n {
		line := fmt.Sprintf("line %d\n", from.n)
		all.WriteString(line)
		for some := range slices.Chunk(paths, 200) {
			var recs []rec
			for _, path := range some {
				recs = append(recs, rec{host: "h", path: path, data: line})
			}
			r.take(t, from.seal(recs...))
		}
		for _, path := range paths {
			must(t, r.rotor.try(t.Context(), r.table.files[r.out(path)], true))
		}
	}
	stop := r.runs(t)
	r.drain(t)
	eventually(t, "compression and removals", r.rotor.idle)
	stop()
	return all.String()
}

func dated(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("%s.log", time.Date(2026, 1, 1+i, 0, 0, 0, 0, time.UTC).Format(time.DateOnly)))
	}
	return names
}

// TestDatedNamesGrowTheStateForEver: what was rotated of names that do not come back is forgotten.
func TestDatedNamesGrowTheStateForEver(t *testing.T) {
	for names, one := range map[int]Rotate{
		2000: {Size: 1 << 20, Keep: 7}, 300: {Every: 24 * time.Hour}, 50: {Size: 1 << 20, Every: time.Hour, Compress: "zstd"},
	} {
		t.Run(fmt.Sprint(names), func(t *testing.T) {
			if testing.Short() && names > 500 {
				t.Skip("syncs each of 2,000 rotations")
			}
			r := newRotating(t, one)
			want := r.turns(t, newSealer(1), 1, dated(names)...)
			if n := r.known(t); n != names {
				t.Fatalf("%d names are known, want %d: the test shows nothing", n, names)
			}
			r.forgets(t)
			if n := r.known(t); n != 0 {
				t.Errorf("%d names are known for ever", n)
			}
			if n := len(r.table.rotated); n != 0 {
				t.Errorf("%d inodes are known for ever", n)
			}
			r.table.maxIdle = 10
			_, err := r.table.file(r.out(), "another", r.out("another"), &output.Perm{})
			if n := len(r.table.files); err != nil || n > 20 {
				t.Errorf("%d files are known, want at most 20; %v", n, err)
			}
			names2, got := inOrder(t, r.out(), dated(1)[0])
			if got != want {
				t.Errorf("%v have %q, want %q", names2, got, want)
			}
			if n := r.Stats().RotateErrors; n != 0 {
				t.Errorf("%d errors were counted", n)
			}
		})
	}
}

// TestMoreNamesThanAreKnownAtMost: those unused for longest are forgotten though they wait for the
// clock, which is counted and said; those written to are not.
func TestMoreNamesThanAreKnownAtMost(t *testing.T) {
	r := newRotating(t, Rotate{Every: 24 * time.Hour})
	r.rotor.most = 100
	stop := r.runs(t)
	from, names := newSealer(1), dated(1000)
	for i, name := range names {
		r.take(t, from.seal(rec{host: "h", path: name, data: "a line\n"}, rec{host: "h", path: "always.log", data: "a line\n"}))
		if i == 500 {
			r.drain(t)
		}
	}
	r.drain(t)
	eventually(t, "the limit", func() bool {
		r.rotor.mu.Lock()
		defer r.rotor.mu.Unlock()
		return len(r.rotor.series) <= 100
	})
	stop()
	if n := r.known(t); n < 75 || n > 100 {
		t.Errorf("%d names are known", n)
	}
	for _, name := range append(names[len(names)-70:], "always.log") {
		if r.rotor.series[r.out(name)] == nil {
			t.Errorf("%s is not known any more", name)
		}
	}
	if n := r.Stats().RotateErrors; n < 900 {
		t.Errorf("%d were counted", n)
	}
}

// TestANameThatComesBackBeganAnew: numbers go on, and keep holds over what was rotated before, but
// for what is not ftfuse's.
func TestANameThatComesBackBeganAnew(t *testing.T) {
	for _, restart := range []bool{false, true} {
		for _, compress := range []string{"none", "gzip"} {
			one := Rotate{Size: 1 << 20, Keep: 3, Compress: compress}
			r := newRotating(t, one)
			from := newSealer(1)
			want := r.turns(t, from, 5, "f")
			r.forgets(t)
			suffix := codecOf(compress).suffix()
			must(t, os.WriteFile(r.out("f.000001"+suffix), []byte("of the operator"), 0o600))
			if restart {
				must(t, r.q.Close())
				must(t, r.Close())
				r.reopen(t, rotating(r.out(), one))
			}
			if n := r.known(t); n != 0 {
				t.Fatalf("%d names are known", n)
			}
			want += r.turns(t, from, 2, "f")
			var names []string
			got := ""
			for n := 5; n <= 7; n++ {
				names = append(names, fmt.Sprintf("f.%06d%s", n, suffix))
				got += unpack(t, r.out(names[len(names)-1]))
			}
			if !strings.HasSuffix(want, got) || strings.Count(got, "\n") != 3 {
				t.Errorf("%v have %q, want the end of %q", names, got, want)
			}
			names = append(names, "f.000001"+suffix)
			entries, err := os.ReadDir(r.out())
			must(t, err)
			for _, e := range entries {
				if !slices.Contains(names, e.Name()) && e.Name() != "f" {
					t.Errorf("restart %v: there is a %s", restart, e.Name())
				}
			}
			if raw, _ := os.ReadFile(r.out("f.000001" + suffix)); string(raw) != "of the operator" {
				t.Errorf("the operator's file has %q", raw)
			}
		}
	}
}

// TestARecordForAForgottenRotatedFile is a dead letter as ever, and what a record made of such
// a name is never counted by keep.
func TestARecordForAForgottenRotatedFile(t *testing.T) {
	r := newRotating(t, Rotate{Size: 1 << 20, Keep: 1, Compress: "gzip"})
	from := newSealer(1)
	r.turns(t, from, 1, "f")
	before, err := os.ReadFile(r.out("f.000001.gz"))
	must(t, err)
	r.forgets(t)
	r.take(t, from.seal(rec{host: "h", path: "f.000001.gz", data: "mine\n"}, rec{host: "h", path: "f.000000", data: "mine, too\n"}))
	stop := r.runs(t)
	r.drain(t)
	stop()
	if after, _ := os.ReadFile(r.out("f.000001.gz")); string(after) != string(before) {
		t.Errorf("the rotated file has %d bytes, want %d", len(after), len(before))
	}
	if d := r.Stats().Dead[output.ReasonRotated]; d.Letters != 1 {
		t.Errorf("dead letters %+v", r.Stats().Dead)
	}
	r.turns(t, from, 1, "f")
	if _, err := os.Stat(r.out("f.000001.gz")); err == nil {
		t.Error("keep does not hold")
	}
	if got := unpack(t, r.out("f.000000")); got != "mine, too\n" {
		t.Errorf("what a record made has %q", got)
	}
}

// TestWhatWaitsForTheClockIsNotForgotten however long nothing comes for it.
func TestWhatWaitsForTheClockIsNotForgotten(t *testing.T) {
	r := newRotating(t, Rotate{Every: 24 * time.Hour})
	from := newSealer(1)
	stop := r.runs(t)
	want := r.feedLines(t, from, "quiet.log", 0, 1, 1)
	r.drain(t)
	stop()
	r.forgets(t)
	if n := r.known(t); n != 1 {
		t.Fatalf("%d names are known, want 1", n)
	}
	tomorrow := time.Now().Add(24 * time.Hour)
	r.rotor.now = func() time.Time { return tomorrow }
	stop = r.runs(t)
	eventually(t, "the rotation", func() bool { return r.Stats().Rotations == 1 })
	stop()
	if got := unpack(t, r.out("quiet.log.000001")); got != want {
		t.Errorf("the quiet file has %q", got)
	}
	r.forgets(t)
	if n := r.known(t); n != 0 {
		t.Errorf("%d names are known", n)
	}
}

// TestNumbersOfFilesThatWereMovedAway are given once: the directory does not tell them.
func TestNumbersOfFilesThatWereMovedAway(t *testing.T) {
	one := Rotate{Size: 1 << 20}
	r := newRotating(t, one)
	from := newSealer(1)
	r.turns(t, from, 2, "f")
	for _, name := range []string{"f.000001", "f.000002"} {
		must(t, os.Rename(r.out(name), filepath.Join(r.dir, name)))
	}
	r.forgets(t)
	must(t, r.q.Close())
	must(t, r.Close())
	r.reopen(t, rotating(r.out(), one))
	r.forgets(t)
	r.turns(t, from, 1, "f")
	if _, err := os.Stat(r.out("f.000003")); err != nil {
		t.Errorf("a number was given twice: %v", err)
	}
}

// TestWhatCannotBeMarkedStaysKnown, for as long as there is room: ramfs has no attributes.
func TestWhatCannotBeMarkedStaysKnown(t *testing.T) {
	r := &rig{dir: t.TempDir()}
	must(t, os.Mkdir(r.out(), 0o755))
	must(t, unix.Mount("ramfs", r.out(), "ramfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(r.out(), unix.MNT_DETACH)) })
	r.reopen(t, rotating(r.out(), Rotate{Size: 1 << 20, Keep: 2}))
	defer r.Close()
	defer r.q.Close()
	from := newSealer(1)
	r.turns(t, from, 2, "f", "g")
	r.forgets(t)
	if n := r.known(t); n != 2 {
		t.Fatalf("%d names are known, want both", n)
	}
	r.turns(t, from, 1, "f")
	if _, err := os.Stat(r.out("f.000001")); err == nil {
		t.Error("keep does not hold")
	}
	r.rotor.most = 1
	r.forgets(t)
	if r.known(t); len(r.rotor.series) > 1 || r.rotor.series[r.out("g")] != nil || r.Stats().RotateErrors == 0 {
		t.Errorf("known are %v, %d errors", r.rotor.series, r.Stats().RotateErrors)
	}
}
