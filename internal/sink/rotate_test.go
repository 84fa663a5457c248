package sink

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/output"
	"ftfuse/internal/record"
	"ftfuse/internal/roletest"
	"ftfuse/queue"
)

// rotating is one output with a rotation, by path below out.
func rotating(dir string, r Rotate) Output {
	return output1(dir, func(o *Output) { o.File, o.Rotate = "%F", r })
}

func newRotating(t *testing.T, r Rotate) *rig {
	t.Helper()
	x := newRig(t)
	must(t, x.Reconfigure([]Output{rotating(x.out(), r)}))
	x.o.CheckpointEvery = time.Millisecond
	return x
}

// unpack returns what a file has, by the suffix of its name, and fails where it is not whole.
func unpack(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	must(t, err)
	return roletest.Unpack(t, path, raw)
}

// inOrder returns the names below dir that begin with name, the rotated ones first, and what
// they have together.
func inOrder(t *testing.T, dir, name string) (names []string, all string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name+".") {
			names = append(names, e.Name())
			all += unpack(t, filepath.Join(dir, e.Name()))
		}
	}
	if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
		names = append(names, name)
		all += unpack(t, filepath.Join(dir, name))
	}
	return names, all
}

// eventually waits for what the rotor does, with checkpoints on the way.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waiting for %s", what)
		}
	}
}

// feedLines takes n numbered lines for path, k a batch, and returns them.
func (r *rig) feedLines(t *testing.T, from *sealer, path string, first, n, k int) string {
	t.Helper()
	var all strings.Builder
	for i := 0; i < n; i += k {
		data := ""
		for j := i; j < min(i+k, n); j++ {
			data += fmt.Sprintf("%08d %s\n", first+j, strings.Repeat("x", 50))
		}
		all.WriteString(data)
		r.take(t, from.seal(rec{host: "h", path: path, data: data}))
	}
	return all.String()
}

// TestRotatedBySize: with each codec, every line once and in order, in files that have at
// least the size and end with a line.
func TestRotatedBySize(t *testing.T) {
	for _, compress := range []string{"none", "gzip", "zstd"} {
		t.Run(compress, func(t *testing.T) {
			const size = 16 << 10
			r := newRotating(t, Rotate{Size: size, Compress: compress})
			stop := r.runs(t)
			from := newSealer(1)
			var want string
			for i := range 20 {
				n := r.Stats().Rotations
				want += r.feedLines(t, from, "app.log", i*400, 400, 7)
				r.drain(t)
				eventually(t, "a rotation", func() bool { return r.Stats().Rotations > n })
			}
			suffix := codecOf(compress).suffix()
			if suffix != "" {
				eventually(t, "compression", func() bool { st := r.Stats(); return st.RotatedPacked == st.Rotations })
			}
			stop()
			names, got := inOrder(t, r.out(), "app.log")
			if got != want {
				t.Errorf("%d bytes in %d files differ from the %d taken", len(got), len(names), len(want))
			}
			for i, name := range names[:len(names)-1] {
				if name != fmt.Sprintf("app.log.%06d%s", i+1, suffix) {
					t.Errorf("file %d is called %s", i, name)
				}
				if text := unpack(t, r.out(name)); len(text) < size || text[len(text)-1] != '\n' {
					t.Errorf("%s has %d bytes and ends with %q", name, len(text), text[len(text)-1:])
				}
			}
			if st := r.Stats(); st.Generations+st.PossibleDoubles+st.RotateErrors > 0 || int(st.Rotations) != len(names)-1 {
				t.Errorf("%+v for %d files", st, len(names))
			}
		})
	}
}

// TestAFileGotItsSizeWhileTheOneBeforeWasRotated, and waited for another record.
func TestAFileGotItsSizeWhileTheOneBeforeWasRotated(t *testing.T) {
	r := newRotating(t, Rotate{Size: 4 << 10})
	from := newSealer(1)
	r.feedLines(t, from, "f", 0, 100, 100)
	f := r.rotor.nextDue()
	must(t, r.rotor.rotate(t.Context(), f, false))
	r.feedLines(t, from, "f", 100, 100, 100)
	r.table.turned(f, false)
	if again := r.rotor.nextDue(); again != f || r.rotor.nextDue() != nil {
		t.Errorf("due is %v, want the file again, once", again)
	}
}

// TestTheOldestRotatedFilesAreRemoved: more than keep, and only those of ftfuse's own.
func TestTheOldestRotatedFilesAreRemoved(t *testing.T) {
	r := newRotating(t, Rotate{Size: 4 << 10, Keep: 3, Compress: "gzip"})
	must(t, os.WriteFile(r.out("app.log.0"), []byte("of the operator"), 0o600))
	must(t, os.WriteFile(r.out("app.log.000007.gz"), []byte("as well"), 0o600))
	stop := r.runs(t)
	from := newSealer(1)
	for i := range 8 {
		n := r.Stats().Rotations
		r.feedLines(t, from, "app.log", i*100, 100, 10)
		r.drain(t)
		eventually(t, "a rotation", func() bool { return r.Stats().Rotations > n })
	}
	eventually(t, "removals", func() bool {
		st := r.Stats()
		return st.RotatedRemoved == st.Rotations-3 && st.RotatedRemovedBytes > 0 && r.rotor.idle()
	})
	last := r.rotor.series[r.out("app.log")].last
	stop()
	want := []string{"app.log", "app.log.0", "app.log.000007.gz"}
	for n := last - 2; n <= last; n++ {
		want = append(want, fmt.Sprintf("app.log.%06d.gz", n))
	}
	entries, err := os.ReadDir(r.out())
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Errorf("there are %v, want %v", got, want)
	}
}

// idle reports whether nothing is to be compressed or removed.
func (r *rotor) idle() bool { return !r.hasWork() }

// TestALongLineStaysInOneFile: its pieces come in batches, and the size is reached in between.
func TestALongLineStaysInOneFile(t *testing.T) {
	r := newRotating(t, Rotate{Size: 16 << 10})
	stop := r.runs(t)
	from := newSealer(1)
	piece := strings.Repeat("a", 3000)
	const pieces, due = 9, 6 // less than twice the bytes
	for i := range pieces {
		data, flags := piece, uint16(record.PieceMiddle)
		switch i {
		case 0:
			flags = record.PieceFirst
		case pieces - 1:
			data, flags = piece+"\n", record.PieceLast
		}
		r.take(t, from.seal(rec{host: "h", path: "f", data: data, flags: flags}))
		r.drain(t)
		if i == due {
			eventually(t, "the rename", func() bool { return r.Stats().Rotations == 1 })
		}
	}
	r.take(t, from.seal(rec{host: "h", path: "f", data: "next\n"}))
	r.drain(t)
	stop()
	if got := unpack(t, r.out("f.000001")); got != strings.Repeat(piece, pieces)+"\n" {
		t.Errorf("the first file has %d bytes", len(got))
	}
	if got := unpack(t, r.out("f")); got != "next\n" {
		t.Errorf("the second file has %d bytes", len(got))
	}
}

// TestALineThatNeverEndsIsNotWaitedForLong: its file has twice the bytes then.
func TestALineThatNeverEndsIsNotWaitedForLong(t *testing.T) {
	r := newRotating(t, Rotate{Size: 4 << 10})
	stop := r.runs(t)
	from := newSealer(1)
	for i := range 20 {
		flags := uint16(record.PieceMiddle)
		if i == 0 {
			flags = record.PieceFirst
		}
		r.take(t, from.seal(rec{host: "h", path: "f", data: strings.Repeat("a", 3000), flags: flags}))
		r.drain(t)
		if i == 2 {
			eventually(t, "the rename", func() bool { _, err := os.Stat(r.out("f.000001")); return err == nil })
		}
	}
	stop()
	first := len(unpack(t, r.out("f.000001")))
	if _, all := inOrder(t, r.out(), "f"); len(all) != 60000 || first > 20000 {
		t.Errorf("%d bytes in all, %d of them in the first file", len(all), first)
	}
}

// TestARotationWaitedForBinaryRecords, whose ends are not seen in a file of their bytes alone: for 10 s,
// or until the file had twice its bytes.
func TestARotationWaitedForBinaryRecords(t *testing.T) {
	r := newRotating(t, Rotate{Size: 4 << 10})
	stop := r.runs(t)
	from := newSealer(1)
	put := func(recs ...rec) {
		for i := range recs {
			recs[i].host, recs[i].path = "h", "f"
		}
		r.take(t, from.seal(recs...))
		r.drain(t)
	}
	first := strings.Repeat("\x00", 5000)
	put(rec{data: first, flags: record.Binary | record.PieceFirst}, rec{flags: record.Binary | record.PieceLast})
	eventually(t, "the rotation", func() bool { return r.Stats().Rotations == 1 })
	put(rec{data: "\x01", flags: record.Binary | record.PieceFirst}, rec{flags: record.Binary | record.PieceLast})
	stop()
	if got := unpack(t, r.out("f.000001")); got != first {
		t.Errorf("the first file has %d bytes, want %d", len(got), len(first))
	}
	if got := unpack(t, r.out("f")); got != "\x01" {
		t.Errorf("the second file has %q", got)
	}
}

// TestRotatedByTheClock: what was begun in an earlier period, whether something comes for it
// or not, also after a restart; not what is empty or of this period.
func TestRotatedByTheClock(t *testing.T) {
	r := newRotating(t, Rotate{Every: 24 * time.Hour, Compress: "zstd"})
	now := time.Now()
	r.rotor.now = func() time.Time { return now }
	stop := r.runs(t)
	from := newSealer(1)
	want := r.feedLines(t, from, "app.log", 0, 100, 10)
	quiet := r.feedLines(t, from, "quiet.log", 0, 1, 1)
	r.drain(t)
	stop()
	if st := r.Stats(); st.Rotations != 0 {
		t.Fatalf("%d rotations on the first day", st.Rotations)
	}
	must(t, os.WriteFile(r.out("foreign.log"), []byte("not ours\n"), 0o600))
	// The next day another process runs, and nothing comes for either.
	must(t, r.q.Close())
	must(t, r.Close())
	r.reopen(t, rotating(r.out(), Rotate{Every: 24 * time.Hour, Compress: "zstd"}))
	now = now.Add(24 * time.Hour)
	r.rotor.now = func() time.Time { return now }
	stop = r.runs(t)
	eventually(t, "two rotations", func() bool { return r.Stats().RotatedPacked == 2 })
	want += r.feedLines(t, from, "app.log", 100, 100, 10)
	r.drain(t)
	stop()
	if got := unpack(t, r.out("app.log.000001.zst")) + unpack(t, r.out("app.log")); got != want {
		t.Errorf("%d bytes in both, want %d", len(got), len(want))
	}
	if got := unpack(t, r.out("quiet.log.000001.zst")); got != quiet {
		t.Errorf("the quiet file has %q", got)
	}
	for _, name := range []string{"quiet.log", "foreign.log.000001"} {
		if _, err := os.Stat(r.out(name)); err == nil {
			t.Errorf("there is a %s", name)
		}
	}
}

// TestPeriodsBeginByTheClockOnTheWall: also where clocks are changed.
func TestPeriodsBeginByTheClockOnTheWall(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	must(t, err)
	const day = 24 * time.Hour
	for _, x := range []struct {
		now   string
		every time.Duration
		want  string
	}{
		{"2026-11-23 13:14:15", day, "2026-11-23 00:00:00"},
		{"2026-11-23 13:14:15", time.Hour, "2026-11-23 13:00:00"},
		{"2026-11-23 13:14:15", 15 * time.Minute, "2026-11-23 13:00:00"},
		{"2026-11-23 13:14:15", 6 * time.Hour, "2026-11-23 12:00:00"},
		{"2026-11-23 13:14:15", 10 * time.Second, "2026-11-23 13:14:10"},
		{"2026-11-23 13:14:15", 7 * day, "2026-11-23 00:00:00"}, // a Monday
		{"2026-11-29 23:59:59", 7 * day, "2026-11-23 00:00:00"},
		{"2026-03-29 13:00:00", day, "2026-03-29 00:00:00"}, // an hour is missing
		{"2026-03-29 13:30:00", 12 * time.Hour, "2026-03-29 12:00:00"},
		{"2026-10-25 13:30:00", 12 * time.Hour, "2026-10-25 12:00:00"}, // one comes twice
		{"2026-10-25 23:30:00", time.Hour, "2026-10-25 23:00:00"},
	} {
		now, err := time.ParseInLocation(time.DateTime, x.now, berlin)
		must(t, err)
		if got := began(now, x.every).Format(time.DateTime); got != x.want {
			t.Errorf("%v at %s began %s, want %s", x.every, x.now, got, x.want)
		}
	}
}

// TestARotatedFileTakesNothingByItsNewName: a record whose path is that name becomes a dead
// letter, and is never mixed into what is compressed or removed later.
func TestARotatedFileTakesNothingByItsNewName(t *testing.T) {
	r := newRotating(t, Rotate{Size: 4 << 10})
	stop := r.runs(t)
	from := newSealer(1)
	want := r.feedLines(t, from, "f", 0, 100, 100)
	eventually(t, "a rotation", func() bool { return r.Stats().Rotations == 1 })
	r.take(t, from.seal(rec{host: "h", path: "f.000001", data: "mine\n"}))
	r.take(t, from.seal(rec{host: "h", path: "f.000002", data: "mine, too\n"})) // there is none yet
	r.drain(t)
	want2 := r.feedLines(t, from, "f", 100, 100, 100)
	eventually(t, "a rotation", func() bool { return r.Stats().Rotations == 2 })
	r.drain(t)
	stop()
	for name, text := range map[string]string{"f.000001": want, "f.000002": "mine, too\n", "f.000003": want2} {
		if got := unpack(t, r.out(name)); got != text {
			t.Errorf("%s has %d bytes, want %d", name, len(got), len(text))
		}
	}
	if d := r.Stats().Dead[output.ReasonRotated]; d.Letters != 1 || d.Records != 1 {
		t.Errorf("dead letters %+v", r.Stats().Dead)
	}
}

// TestWhatIsStillToBeWrittenIsNotCompressed: nor removed, however many are to be kept.
func TestWhatIsStillToBeWrittenIsNotCompressed(t *testing.T) {
	r := newRotating(t, Rotate{Size: 4 << 10, Keep: 1, Compress: "gzip"})
	from := newSealer(1)
	want := r.feedLines(t, from, "f", 0, 100, 100)
	f := r.table.files[r.out("f")]
	must(t, r.rotor.try(t.Context(), f, false))
	for i := range 2 { // assigned, not written
		want += r.feedLines(t, from, "f", 100+i*100, 100, 100)
		must(t, r.rotor.try(t.Context(), f, false))
	}
	if st := r.Stats(); st.Rotations != 3 {
		t.Fatalf("%d rotations, want 3", st.Rotations)
	}
	if s, k, _ := r.rotor.nextWork(); s != nil {
		t.Fatalf("%s is worked on before it has its bytes", s.nameOf(&k))
	}
	must(t, r.Reconfigure([]Output{rotating(r.out(), Rotate{Size: 4 << 10, Compress: "gzip"})}))
	stop := r.runs(t)
	r.drain(t)
	eventually(t, "compression", func() bool { return r.Stats().RotatedPacked == 3 })
	stop()
	if _, got := inOrder(t, r.out(), "f"); got != want {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
}

// TestOwnAndForeignRotation: another program renames the file again and again, too.
func TestOwnAndForeignRotation(t *testing.T) {
	r := newRotating(t, Rotate{Size: 4 << 10, Compress: "zstd"})
	stop := r.runs(t)
	from := newSealer(1)
	want, next := "", 1_000_000
	for i := range 30 {
		want += r.feedLines(t, from, "f", i*100, 100, 3)
		if i%3 == 0 {
			_ = os.Rename(r.out("f"), r.out(fmt.Sprintf("f.old%d", i)))
			eventually(t, "another file", func() bool {
				want += r.feedLines(t, from, "f", next, 1, 1)
				next++
				_, err := os.Stat(r.out("f"))
				return err == nil
			})
		}
	}
	eventually(t, "a rotation of its own", func() bool { // the other program may always have been faster
		want += r.feedLines(t, from, "f", next, 20, 1)
		next += 20
		return r.Stats().Rotations > 0
	})
	r.drain(t)
	eventually(t, "compression", r.rotor.idle)
	stop()
	_, got := inOrder(t, r.out(), "f")
	count := map[string]int{}
	for line := range strings.Lines(got) {
		count[line]++
	}
	for line := range strings.Lines(want) {
		if count[line] != 1 {
			t.Errorf("%.8s stands %d times", line, count[line])
		}
	}
	if st := r.Stats(); st.PossibleDoubles > 0 || st.Rotations == 0 || st.Generations == 0 {
		t.Errorf("%+v", st)
	}
}

// TestCompressedFilesKeepOwnerModeAndTime of what they were made of, with files that have no
// name and where the file system has none.
func TestCompressedFilesKeepOwnerModeAndTime(t *testing.T) {
	for _, named := range []bool{false, true} {
		r := newRotating(t, Rotate{Size: 4 << 10, Compress: "gzip"})
		must(t, r.roots.open[r.out()].Close())
		root, err := output.OpenRoot(r.out(), output.Options{NoTmpfile: named})
		must(t, err)
		r.roots.open[r.out()] = root
		from := newSealer(1)
		want := r.feedLines(t, from, "f", 0, 100, 100)
		must(t, r.rotor.try(t.Context(), r.table.files[r.out("f")], false))
		must(t, os.WriteFile(r.out("f.000001.gz.part"), []byte("of a kill"), 0o600))
		then := time.Unix(1e9, 0)
		must(t, os.Chmod(r.out("f.000001"), 0o640))
		must(t, os.Chown(r.out("f.000001"), 1234, 2345))
		r.o.CheckpointEvery = time.Hour
		stop := r.runs(t)
		r.drain(t)
		must(t, os.Chtimes(r.out("f.000001"), then, then))
		stop() // with a checkpoint
		stop = r.runs(t)
		eventually(t, "compression", func() bool { return r.Stats().RotatedPacked == 1 })
		stop()
		info, err := os.Stat(r.out("f.000001.gz"))
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		if st.Uid != 1234 || st.Gid != 2345 || info.Mode() != 0o640 || !info.ModTime().Equal(then) {
			t.Errorf("named %v: %d:%d %v %v", named, st.Uid, st.Gid, info.Mode(), info.ModTime())
		}
		if got := unpack(t, r.out("f.000001.gz")); got != want {
			t.Errorf("named %v: %d bytes, want %d", named, len(got), len(want))
		}
		if _, err := os.Stat(r.out("f.000001.gz.part")); (err != nil) != named {
			t.Errorf("named %v: the .part: %v", named, err)
		}
	}
}

// TestARotatedFileIsCompressedAfterARestart though nothing comes for it any more: the redo
// found its last bytes.
func TestARotatedFileIsCompressedAfterARestart(t *testing.T) {
	one := Rotate{Size: 4 << 10, Compress: "zstd"}
	r := newRotating(t, one)
	want := r.feedLines(t, newSealer(1), "f", 0, 100, 100)
	must(t, r.rotor.try(t.Context(), r.table.files[r.out("f")], false))
	must(t, r.q.Close())
	must(t, r.Close())
	r.reopen(t, rotating(r.out(), one))
	stop := r.runs(t)
	r.drain(t)
	eventually(t, "compression", func() bool { return r.Stats().RotatedPacked == 1 })
	stop()
	if got := unpack(t, r.out("f.000001.zst")); got != want {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
}

// TestNoRotatedFileGoesBeforeItsBatchesAreForgotten: a redo of the queue as it is on disk when
// a file is removed, or is only there compressed, needs nothing of it.
func TestNoRotatedFileGoesBeforeItsBatchesAreForgotten(t *testing.T) {
	for step, one := range map[string]Rotate{
		"rotate/removed":  {Size: 4 << 10, Keep: 1},
		"rotate/unlinked": {Size: 4 << 10, Compress: "gzip"},
	} {
		r := newRotating(t, one)
		from := newSealer(1)
		for i := range 2 {
			r.feedLines(t, from, "f", i*100, 100, 1)
			must(t, r.rotor.try(t.Context(), r.table.files[r.out("f")], false))
		}
		must(t, failpoint.Set(step, "pause"))
		stop := r.runs(t)
		eventually(t, "the first file to go", func() bool { _, err := os.Stat(r.out("f.000001")); return err != nil })
		image := filepath.Join(r.dir, "image")
		must(t, os.CopyFS(image, os.DirFS(filepath.Join(r.dir, "queue"))))
		failpoint.Clear(step)
		r.drain(t)
		stop()
		q, err := queue.Open(image, queue.Options{Dedupe: true, Cursors: []string{"apply"}})
		must(t, err)
		cur, err := q.Cursor("apply")
		must(t, err)
		if left := q.Stats().Cursors[0].Waiting.Batches; left > 0 {
			if item, err := cur.Next(t.Context()); err != nil || item.Batch.ID.N <= 100 {
				t.Errorf("%s: %d batches are left, the first is %v: it would be looked for; %v", step, left, item.Batch.ID, err)
			}
		}
		must(t, q.Close())
	}
}
