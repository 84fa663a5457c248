package receive

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ftfuse/config"
	"ftfuse/internal/roletest"
)

// rotatingSetup is a receiver that rotates its output files often.
func rotatingSetup(t *testing.T, r config.Rotate) setup {
	s := newSetup(t)
	s.Outputs[0].Rotate = r
	s.CheckpointEvery, s.CheckpointBytes = 5*time.Millisecond, 200<<10
	return s
}

// series returns what the rotated files of one output file and itself have together, in order, and
// fails where one that is compressed is not whole. With a plain and a compressed one of a
// number, as a kill may leave them until the next start, it takes the plain one.
func series(t *testing.T, path string) (all string, files int) {
	t.Helper()
	rotated := func() []string {
		names, err := filepath.Glob(path + ".[0-9]*")
		must(t, err)
		return names
	}
	for names := rotated(); ; { // again where one was rotated or compressed meanwhile
		all, files = readSeries(t, names, path)
		was := names
		if names = rotated(); slices.Equal(was, names) {
			return all, files
		}
	}
}

// readSeries reads the files names, without those that are gone, and path.
func readSeries(t *testing.T, names []string, path string) (all string, files int) {
	t.Helper()
	seen := map[string]bool{}
	for _, name := range append(slices.Clone(names), path) {
		raw, err := os.ReadFile(name)
		if os.IsNotExist(err) {
			continue
		}
		must(t, err)
		plain := strings.TrimSuffix(strings.TrimSuffix(name, ".zst"), ".gz")
		text := roletest.Unpack(t, name, raw)
		if !seen[plain] {
			all += text
			files++
		}
		seen[plain] = true
	}
	return all, files
}

// packed waits until every rotated file below dir is compressed.
func packed(t *testing.T, s setup, codec string) {
	t.Helper()
	limit := time.Now().Add(testLimit)
	for {
		left, err := filepath.Glob(s.out("h", "*.[0-9][0-9][0-9][0-9][0-9][0-9]"))
		must(t, err)
		if len(left) == 0 {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("not compressed with %s: %v", codec, left)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestKillAtEveryStepOfARotation kills the receiver the Nth time it passes a step, where names are forgotten as soon as can be. At every moment each
// compressed file that has its name is whole; after the next start every line stands once, in order.
func TestKillAtEveryStepOfARotation(t *testing.T) {
	for i, point := range []string{"intended", "renamed", "begun", "packing", "packed", "noted", "linked", "unlinked", "marked", "forgotten"} {
		t.Run(point, func(t *testing.T) {
			codec := []config.RotateCodec{config.RotateGzip, config.RotateZstd}[i%2]
			s := rotatingSetup(t, config.Rotate{Size: 64 << 10, Compress: codec})
			s.ForgetAfter = time.Millisecond
			f := newFeeder(1)
			f.connect(t, s.Listen)
			l := newLoad(t, f, "a", "b", "c")
			for _, nth := range []int{1, 2, 5} {
				p := spawn(t, s, fmt.Sprintf("rotate/%s=kill@%d", point, nth))
				l.untilKilled(p)
				for _, name := range l.files {
					series(t, s.out("h", name))
				}
			}
			x := start(t, s)
			f.until(t, "final acks", f.allFinal)
			packed(t, s, string(codec))
			files := 0
			for _, name := range l.files {
				got, n := series(t, s.out("h", name))
				if got != l.want[name].String() {
					t.Errorf("%s: %d bytes in %d files, want %d; first difference at %d", name, len(got), n, l.want[name].Len(), differ(got, l.want[name].String()))
				}
				files += n
			}
			st := x.r.Stats()
			t.Logf("%d batches in %d files; last run: %+v", len(f.queue), files, st)
			if st.PossibleDoubles != 0 || st.RotateErrors != 0 {
				t.Errorf("%d possible doubles, %d errors were counted", st.PossibleDoubles, st.RotateErrors)
			}
			x.end()
		})
	}
}

// differ returns where two texts differ.
func differ(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// TestKillWhileTheOldestAreRemoved: what is left is the newest part, whole and in order.
func TestKillWhileTheOldestAreRemoved(t *testing.T) {
	s := rotatingSetup(t, config.Rotate{Size: 32 << 10, Keep: 2, Compress: config.RotateZstd})
	s.ForgetAfter = time.Millisecond // the name is forgotten between two rotations
	f := newFeeder(1)
	f.connect(t, s.Listen)
	l := newLoad(t, f, "a")
	for _, kill := range []string{"removed=kill", "forgotten=kill", "removed=kill", "marked=kill@3", "removed=kill@2", "forgotten=kill@4", "removed=kill@4"} {
		l.untilKilled(spawn(t, s, "rotate/"+kill))
	}
	x := start(t, s)
	f.until(t, "final acks", f.allFinal)
	packed(t, s, "zstd")
	limit := time.Now().Add(testLimit)
	for names := []string{"", "", ""}; len(names) > 2; names, _ = filepath.Glob(s.out("h", "a.*")) {
		if time.Now().After(limit) {
			t.Fatalf("there are still %v", names)
		}
		time.Sleep(time.Millisecond)
	}
	got, n := series(t, s.out("h", "a"))
	if want := l.want["a"].String(); !strings.HasSuffix(want, got) || n < 2 {
		t.Errorf("%d bytes in %d files are not the end of %d", len(got), n, len(want))
	}
	if d := x.r.Stats().PossibleDoubles; d != 0 {
		t.Errorf("%d possible doubles were counted", d)
	}
	x.end()
}

// TestKillWhileFilesAreRotated at random moments, with little time between rotations, by size
// and by the clock.
func TestKillWhileFilesAreRotated(t *testing.T) {
	rounds := 12
	if os.Getenv("FTFUSE_SOAK") != "" {
		rounds = 200
	}
	s := rotatingSetup(t, config.Rotate{Size: 100 << 10, Every: time.Second, Compress: config.RotateZstd})
	s.ForgetAfter = time.Millisecond
	f := newFeeder(1)
	f.connect(t, s.Listen)
	l := newLoad(t, f, "a", "b/c", "b/d", "e")
	for range rounds {
		p := spawn(t, s, "")
		l.during(t, time.Duration(50+l.rnd.IntN(250))*time.Millisecond)
		p.kill()
		for _, name := range l.files {
			series(t, s.out("h", name))
		}
	}
	x := start(t, s)
	f.until(t, "final acks", f.allFinal)
	packed(t, s, "zstd")
	x.end() // the clock goes on
	files := 0
	for _, name := range l.files {
		got, n := series(t, s.out("h", name))
		if got != l.want[name].String() {
			t.Errorf("%s: %d bytes in %d files, want %d; first difference at %d", name, len(got), n, l.want[name].Len(), differ(got, l.want[name].String()))
		}
		files += n
	}
	st := x.r.Stats()
	t.Logf("%d batches in %d kills, %d files; last run: %+v", len(f.queue), rounds, files, st)
	if st.PossibleDoubles != 0 {
		t.Errorf("%d possible doubles were counted", st.PossibleDoubles)
	}
}
