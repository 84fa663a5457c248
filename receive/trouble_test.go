package receive

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/config"
	"ftfuse/internal/roletest"
)

// TestFullDiskHoldsItsDataAlone: an output disk without room keeps its data in the
// queue, across a kill too; another output goes on; nothing is lost or doubled when
// there is room again.
func TestFullDiskHoldsItsDataAlone(t *testing.T) {
	full, dir := roletest.SmallDisk(t, "size=300k"), t.TempDir()
	s := newSetup(t,
		output1(full, func(o *config.Output) { o.File = "%f" }),
		output1(dir+"/other", func(o *config.Output) { o.File = "%f" }))
	must(t, os.WriteFile(full+"/filler", make([]byte, 150<<10), 0o644))
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	var want [2]strings.Builder
	send := func(n int) {
		for range n {
			var recs []rec
			for k := range want {
				data := fmt.Sprintf("%d %s\n", want[k].Len(), strings.Repeat("y", 3000))
				want[k].WriteString(data)
				recs = append(recs, rec{host: "h", path: fmt.Sprintf("f%d", k), data: data})
			}
			f.add(recs...)
		}
		f.until(t, "acks", f.allAcked)
	}
	send(100)
	waitFor(t, "held files", func() bool { return x.r.Stats().HeldFiles == 2 })
	waitFor(t, "the other output", func() bool {
		i, err := os.Stat(dir + "/other/f1")
		return err == nil && i.Size() == int64(want[1].Len())
	})
	x.end()
	p := spawn(t, s, "") // a start with a full disk takes batches too
	send(20)
	p.kill()
	x = start(t, s)
	must(t, os.Remove(full+"/filler"))
	must(t, syscall.Mount("tmpfs", full, "tmpfs", syscall.MS_REMOUNT, "size=4m"))
	send(20)
	f.until(t, "final acks", f.allFinal)
	for k := range want {
		wantFile(t, fmt.Sprintf("%s/f%d", full, k), want[k].String())
		wantFile(t, fmt.Sprintf("%s/other/f%d", dir, k), want[k].String())
	}
	if st := x.r.Stats(); st.HeldFiles != 0 || st.PossibleDoubles != 0 {
		t.Errorf("%d held files, %d possible doubles", st.HeldFiles, st.PossibleDoubles)
	}
	x.end()
}

// TestFileThatCannotBeMade: without room for the file itself there is no inode to assign
// bytes in.
func TestFileThatCannotBeMade(t *testing.T) {
	full := roletest.SmallDisk(t, "size=1m,nr_inodes=2")
	s := newSetup(t, output1(full, func(o *config.Output) { o.File = "%f" }))
	must(t, os.WriteFile(full+"/filler", nil, 0o644))
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	f.add(rec{host: "h", path: "f", data: "one\n"})
	f.add(rec{host: "h", path: "f", data: "two\n"})
	f.until(t, "acks", f.allAcked)
	waitFor(t, "a held file", func() bool { return x.r.Stats().HeldFiles == 1 })
	x.end()
	x = start(t, s)
	f.add(rec{host: "h", path: "f", data: "three\n"})
	f.until(t, "acks", f.allAcked)
	must(t, os.Remove(full+"/filler"))
	f.until(t, "final acks", f.allFinal)
	f.add(rec{host: "h", path: "f", data: "four\n"})
	f.until(t, "final acks", f.allFinal)
	wantFile(t, full+"/f", "one\ntwo\nthree\nfour\n")
	x.end()
}

// TestPowerLoss kills the receiver and then takes from the output files what was never
// synced: the end is cut off, and blocks of the rest read as zeros.
func TestPowerLoss(t *testing.T) {
	rounds := 8
	if os.Getenv("FTFUSE_SOAK") != "" {
		rounds = 100
	}
	s := newSetup(t)
	s.CheckpointEvery = 30 * time.Millisecond
	f := newFeeder(1)
	f.connect(t, s.Listen)
	l := newLoad(t, f, "a", "b")
	ends := map[string][]int64{} // by file: its length after each batch
	for range rounds {
		p := spawn(t, s, "")
		for until := time.Now().Add(time.Duration(50+l.rnd.IntN(100)) * time.Millisecond); time.Now().Before(until); {
			l.batch()
			for name, w := range l.want {
				ends[name] = append(ends[name], int64(w.Len()))
			}
			n := len(f.queue)
			f.until(t, "some acks", func() bool { return len(f.acked) > n-20 })
		}
		p.kill()
		f.mu.Lock()
		synced := f.final.Next() - 1 // batches 1 to synced
		f.mu.Unlock()
		for _, name := range l.files {
			path := s.out("h", name)
			var from int64
			if synced > 0 {
				from = ends[name][synced-1]
			}
			if i, err := os.Stat(path); err == nil && i.Size() > from {
				loseUnsynced(t, l, path, from, i.Size())
			}
		}
	}
	x := start(t, s)
	f.until(t, "final acks", f.allFinal)
	l.check(t, s.out())
	t.Logf("%+v", x.r.Stats())
	x.end()
}

func loseUnsynced(t *testing.T, l *load, path string, from, size int64) {
	t.Helper()
	size = from + l.rnd.Int64N(size-from+1)
	must(t, os.Truncate(path, size))
	out, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	defer out.Close()
	for block := (from + 4095) / 4096 * 4096; block < size; block += 4096 {
		if l.rnd.IntN(3) == 0 {
			_, err := out.WriteAt(make([]byte, min(4096, size-block)), block)
			must(t, err)
		}
	}
}

// TestManyFilesFewDescriptors: 10,000 files, 64 of them open at a time.
func TestManyFilesFewDescriptors(t *testing.T) {
	files, rounds := 10000, 2
	if testing.Short() {
		files = 2000
	}
	s := newSetup(t)
	s.OpenFiles = 64
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	begin := time.Now()
	for round := range rounds {
		for i := 0; i < files; {
			var recs []rec
			for range 500 {
				recs = append(recs, rec{host: "h", path: fmt.Sprintf("d%d/f%d", i%50, i), data: fmt.Sprintf("file %d round %d\n", i, round)})
				i++
			}
			f.add(recs...)
		}
	}
	f.until(t, "final acks", f.allFinal)
	t.Logf("%d appends in %v", files*rounds, time.Since(begin))
	for i := range files {
		want := fmt.Sprintf("file %d round 0\nfile %d round 1\n", i, i)
		if got, err := os.ReadFile(s.out("h", fmt.Sprintf("d%d/f%d", i%50, i))); err != nil || string(got) != want {
			t.Fatalf("file %d: %q, %v", i, got, err)
		}
	}
	if st := x.r.Stats(); st.OpenFiles > 64 || st.Generations != 0 {
		t.Errorf("%d files are open, %d generations were counted", st.OpenFiles, st.Generations)
	}
	x.end()
}

// TestSecondOwnerIsRefused: of the state directory, and of an output directory.
func TestSecondOwnerIsRefused(t *testing.T) {
	s := newSetup(t)
	x := start(t, s)
	ctx := t.Context()
	if err := RunWith(ctx, s.config(), testLogger(t), s.options()); err == nil || !strings.Contains(err.Error(), "state_dir") {
		t.Errorf("a second receiver on one state_dir ends with %v", err)
	}
	other := s
	other.State = t.TempDir()
	if err := RunWith(ctx, other.config(), testLogger(t), s.options()); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second receiver on one output dir ends with %v", err)
	}
	x.end()
}

// TestRedoUsesTheStoredTemplates: batches that were taken under one configuration are
// written by it, whatever the next start's is.
func TestRedoUsesTheStoredTemplates(t *testing.T) {
	dir := t.TempDir()
	s := newSetup(t, output1(dir+"/out", func(o *config.Output) { o.File = "old"; o.Format = "old %L" }))
	f := newFeeder(1)
	f.connect(t, s.Listen)
	p := spawn(t, s, "sink/applied=pause")
	f.add(rec{host: "h", path: "f", data: "one\n"})
	f.add(rec{host: "h", path: "f", data: "two\n"})
	f.until(t, "acks", f.allAcked)
	p.kill()
	s.Outputs[0] = output1(dir+"/out", func(o *config.Output) { o.File = "new"; o.Format = "new %L" })
	x := start(t, s)
	f.add(rec{host: "h", path: "f", data: "three\n"})
	f.until(t, "final acks", f.allFinal)
	wantFile(t, dir+"/out/old", "old one\nold two\n")
	wantFile(t, dir+"/out/new", "new three\n")
	x.end()
}

// TestFailedSyncStopsTheRole: after any sync that fails nothing is acked or final, and
// the process ends with an error; the next start writes all of it.
func TestFailedSyncStopsTheRole(t *testing.T) {
	for _, point := range []string{"output/sync", "output/sync-dirs", "output/syncfs"} {
		t.Run(filepath.Base(point), func(t *testing.T) {
			s := newSetup(t)
			f := newFeeder(1)
			f.connect(t, s.Listen)
			p := spawn(t, s, point+"=error")
			var recs []rec
			for i := range 64 { // enough for a sync of the whole file system
				recs = append(recs, rec{host: "h", path: fmt.Sprint(i), data: "line\n"})
			}
			if point != "output/syncfs" {
				recs = recs[:3]
			}
			f.add(recs...)
			if err := p.gone(); err == nil || !strings.Contains(p.log.String(), "checkpoint: sync") {
				t.Errorf("the receiver ended with %v; its log:\n%s", err, p.log)
			}
			f.until(t, "an ack", f.allAcked)
			if n := f.final.Count(); n != 0 {
				t.Errorf("%d batches are final", n)
			}
			x := start(t, s)
			f.until(t, "final acks", f.allFinal)
			for _, r := range recs {
				wantFile(t, s.out("h", r.path), "line\n")
			}
			x.end()
		})
	}
}

// TestFailedAppendIsTriedAgain: an I/O error holds one file, not the role.
func TestFailedAppendIsTriedAgain(t *testing.T) {
	s := newSetup(t)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	spawn(t, s, "output/append=error@3")
	var want strings.Builder
	for i := range 10 {
		data := fmt.Sprintf("line %d\n", i)
		f.add(rec{host: "h", path: "a", data: data}, rec{host: "h", path: "b", data: data})
		want.WriteString(data)
	}
	f.until(t, "final acks", f.allFinal)
	wantFile(t, s.out("h", "a"), want.String())
	wantFile(t, s.out("h", "b"), want.String())
}

// TestDroppedBatchesLeaveNoHole: while an output disk is full the queue overflows and
// drops by its policy; what is left comes whole and in order, with nothing in between,
// and the role ends without waiting for what is gone.
func TestDroppedBatchesLeaveNoHole(t *testing.T) {
	full := roletest.SmallDisk(t, "size=100k")
	s := newSetup(t, output1(full, func(o *config.Output) { o.File = "%f" }))
	s.MaxBytes, s.OnFull = 200<<10, config.FullDropNewest
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	must(t, os.WriteFile(full+"/filler", make([]byte, 60<<10), 0o644))
	sent := map[string]bool{}
	send := func(n int) {
		for range n {
			data := fmt.Sprintf("%06d %s\n", len(sent), strings.Repeat("z", 3000))
			sent[data] = true
			f.add(rec{host: "h", path: "f", data: data})
			f.until(t, "an ack", f.allAcked)
		}
	}
	send(150)
	must(t, os.Remove(full+"/filler"))
	must(t, syscall.Mount("tmpfs", full, "tmpfs", syscall.MS_REMOUNT, "size=8m"))
	waitFor(t, "the held file", func() bool { return x.r.Stats().HeldFiles == 0 })
	send(20)
	begin := time.Now()
	x.end()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v to end", took)
	}
	raw, err := os.ReadFile(full + "/f")
	must(t, err)
	last, lines := "", 0
	for line := range strings.Lines(string(raw)) {
		if !sent[line] || line <= last {
			t.Fatalf("after %.10q comes %.20q", last, line)
		}
		last, lines = line, lines+1
	}
	if lines < 60 || lines == len(sent) || !strings.HasPrefix(last, "000169") {
		t.Errorf("%d of %d lines are there, the last is %.10q", lines, len(sent), last)
	}
}
