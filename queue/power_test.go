package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func powerOptions() Options {
	return Options{
		SegmentBytes: 600 << 10, MemoryBytes: 64 << 10, PendingBytes: 128 << 10, CommitEvery: time.Millisecond,
		IdleBytes: 64 << 10, IdleAfter: time.Millisecond, ReserveBytes: 1, Dedupe: true, Cursors: []string{"out"}, cheapRanges: 3,
	}
}

// TestPowerLossAtAnyMoment runs a queue on the logging file system, then opens what a
// disk could hold after a power loss at many moments of that run: of what was not synced
// any page of any write, or none, and any first part of the changes to the directory.
func TestPowerLossAtAnyMoment(t *testing.T) {
	dir, stop := startPower(t)
	mark := func(format string, a ...any) {
		if err := os.Mkdir(filepath.Join(dir, fmt.Sprintf(format, a...)), 0o700); !errors.Is(err, os.ErrExist) {
			t.Errorf("mark: %v", err)
		}
	}
	entries := powerRun(t, dir, mark)
	ops := stop()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("QUEUE_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("QUEUE_SEED=%d, %d operations, %d entries", seed, len(ops), len(entries))
	r := rand.New(rand.NewPCG(seed, 9))
	moments := 250
	switch {
	case os.Getenv("FTFUSE_SOAK") != "":
		moments = 5000
	case testing.Short():
		moments = 100
	}
	img := filepath.Join(t.TempDir(), "disk")
	opened := 0
	for range moments {
		k := r.IntN(len(ops) + 1)
		done, acked := diskAfter(t, ops[:k], r, img)
		opened += checkPower(t, img, k, entries, done, acked)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d of %d moments had a queue with entries", opened, moments)
}

// powerRun uses the queue and marks what it is told.
func powerRun(t *testing.T, dir string, mark func(string, ...any)) (entries []Entry) {
	t.Helper()
	for run := range 3 {
		q, err := Open(dir, powerOptions())
		if err != nil {
			t.Fatal(err)
		}
		c := mustCursor(t, q, "out")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		var read atomic.Int64
		go func() {
			defer close(ended)
			for {
				it, err := c.Next(ctx)
				if err != nil {
					return
				}
				read.Add(1)
				if run == 1 || it.Seq%23 != 0 {
					mark("ack-%d", it.Seq)
					c.Ack(it.Seq)
				}
			}
		}()
		for range 60 {
			n := uint64(len(entries) + 1)
			size := int(n%5) * 300
			if n%7 == 0 {
				size = 60000
			}
			e := testEntry(1, n, size)
			entries = append(entries, e)
			mustSubmit(t, q, &Txn{
				Entries: []Entry{e}, Set: []KV{{"n", fmt.Appendf(nil, "%d", n)}},
				Done: func(err error) {
					if err == nil {
						mark("done-%d", n)
					}
				},
			})
			if n%3 == 0 {
				mustFlush(t, q)
			}
		}
		mustFlush(t, q)
		cancel()
		<-ended
		mustClose(t, q)
	}
	return entries
}

// diskAfter makes the directory that a power loss after ops could leave.
func diskAfter(t *testing.T, ops []powerOp, r *rand.Rand, img string) (done uint64, acked map[uint64]bool) {
	t.Helper()
	acked = map[uint64]bool{}
	synced := map[int][]byte{}
	unsynced := map[int][]powerOp{}
	names := map[string]int{}
	var dirOps []powerOp
	apply := func(op powerOp) {
		switch op.Kind {
		case 'c':
			names[op.Name] = op.File
		case 'u':
			delete(names, op.Name)
		case 'r':
			names[op.To] = names[op.Name]
			delete(names, op.Name)
		}
	}
	for _, op := range ops {
		switch op.Kind {
		case 'm':
			what, num, _ := strings.Cut(op.Name, "-")
			n, err := strconv.ParseUint(num, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if what == "done" {
				done = max(done, n)
			} else {
				acked[n] = true
			}
		case 'w', 't':
			unsynced[op.File] = append(unsynced[op.File], op)
		case 's':
			for _, w := range unsynced[op.File] {
				synced[op.File] = writeOp(synced[op.File], w)
			}
			delete(unsynced, op.File)
		case 'd':
			for _, d := range dirOps {
				apply(d)
			}
			dirOps = nil
		default:
			dirOps = append(dirOps, op)
		}
	}
	for _, d := range dirOps[:r.IntN(len(dirOps)+1)] {
		apply(d)
	}
	if err := os.RemoveAll(img); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(img, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, id := range names {
		data := loseWrites(append([]byte(nil), synced[id]...), unsynced[id], r)
		if err := os.WriteFile(filepath.Join(img, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return done, acked
}

func writeOp(data []byte, op powerOp) []byte {
	if op.Kind == 't' {
		if op.Off > int64(len(data)) {
			return overwrite(data, op.Off, nil)
		}
		return data[:op.Off]
	}
	return overwrite(data, op.Off, op.Data)
}

// loseWrites applies some pages of the writes: none, all, or each with some chance, the
// later ones perhaps without the earlier. A sector of 512 bytes is written whole.
func loseWrites(data []byte, ops []powerOp, r *rand.Rand) []byte {
	keep := []float64{0, 0.1, 0.5, 0.9, 1}[r.IntN(5)]
	if len(ops) == 0 {
		return data
	}
	unit := []int{512, 4096, 1 << 20}[r.IntN(3)]
	for _, op := range ops {
		if op.Kind == 't' {
			if r.Float64() < keep {
				data = writeOp(data, op)
			}
			continue
		}
		for at := 0; at < len(op.Data); {
			n := min(unit-int(op.Off+int64(at))%unit, len(op.Data)-at)
			if r.Float64() < keep {
				data = overwrite(data, op.Off+int64(at), op.Data[at:at+n])
			}
			at += n
		}
	}
	return data
}

// checkPower opens the disk of moment k: all that was done is there, and all that was not
// acked is given, whole and in order.
func checkPower(t *testing.T, img string, k int, entries []Entry, done uint64, acked map[uint64]bool) int {
	t.Helper()
	q, err := Open(img, powerOptions())
	if err != nil {
		t.Errorf("after %d operations, %d done: %v", k, done, err)
		return 0
	}
	defer mustClose(t, q)
	v, _ := q.Get("n")
	n, _ := strconv.ParseUint(string(v), 10, 64)
	if n < done || n != q.committed {
		t.Errorf("after %d operations: %d were done, the state says %d, the queue has %d", k, done, n, q.committed)
		return 0
	}
	c := mustCursor(t, q, "out")
	for seq := uint64(1); seq <= n; seq++ {
		if c.acked.Contains(seq) {
			if !acked[seq] {
				t.Errorf("after %d operations: entry %d is acked, and never was", k, seq)
			}
			continue
		}
		it := mustNext(t, c)
		if it.Seq != seq || it.Batch.CRC != entries[seq-1].Batch.CRC {
			t.Errorf("after %d operations: got entry %d, want %d", k, it.Seq, seq)
			return 0
		}
	}
	if st := q.Stats(); len(st.Losses) != 0 || st.Quarantined != 0 {
		t.Errorf("after %d operations: %+v", k, st)
	}
	return min(1, int(n))
}

// TestFailedSyncStopsForEver: the commit whose fdatasync failed is told, nothing is tried
// again, and the next start believes the disk and not the page cache.
func TestFailedSyncStopsForEver(t *testing.T) {
	dir, stop := startPower(t)
	q := mustOpen(t, dir, powerOptions())
	for n := uint64(1); n <= 5; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 1000)}})
	}
	mustFlush(t, q)
	if err := os.Mkdir(filepath.Join(dir, "!failsync"), 0o700); !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	told := make(chan error, 2)
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 6, 1000)}, Done: func(err error) { told <- err }})
	if err := <-told; !errors.Is(err, ErrFailed) {
		t.Fatalf("Done was told %v", err)
	}
	<-q.Failed()
	if _, err := q.Submit(t.Context(), &Txn{Entries: []Entry{testEntry(1, 7, 1000)}}); !errors.Is(err, ErrFailed) {
		t.Fatalf("Submit after the failure: %v", err)
	}
	if err := q.Flush(t.Context()); !errors.Is(err, ErrFailed) {
		t.Fatalf("Flush after the failure: %v", err)
	}
	if _, err := mustCursor(t, q, "out").Next(t.Context()); !errors.Is(err, ErrFailed) {
		t.Fatalf("Next after the failure: %v", err)
	}
	if err := q.Close(); !errors.Is(err, ErrFailed) {
		t.Fatalf("Close after the failure: %v", err)
	}
	q = mustOpen(t, dir, powerOptions())
	c := mustCursor(t, q, "out")
	for n := uint64(1); n <= 5; n++ {
		if it := mustNext(t, c); it.Batch.ID.N != n {
			t.Fatalf("got batch %d, want %d", it.Batch.ID.N, n)
		}
	}
	if d := q.Delivered(testLane(1)); d.String() != "1-5" {
		t.Fatalf("delivered %v, want 1-5: batch 6 never reached the disk", d.String())
	}
	mustClose(t, q)
	stop()
}

// TestReadErrorOfTheDiskIsALossAndNotTheEnd: EIO in the middle of a closed segment.
func TestReadErrorOfTheDiskIsALossAndNotTheEnd(t *testing.T) {
	dir, stop := startPower(t)
	q := mustOpen(t, dir, powerOptions())
	for n := uint64(1); n <= 20; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 50000)}})
		mustFlush(t, q) // else chance says which block is where the error will be
	}
	mustClose(t, q)
	name := segmentName(1)
	if err := os.Mkdir(filepath.Join(dir, fmt.Sprintf("!eio=%s=%d", name, 200<<10)), 0o700); !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	q = mustOpen(t, dir, powerOptions())
	c := mustCursor(t, q, "out")
	seen := map[uint64]bool{}
	for !seen[20] {
		it := mustNext(t, c)
		seen[it.Seq] = true
		c.Ack(it.Seq)
	}
	mustClose(t, q)
	q = mustOpen(t, dir, powerOptions())
	st := q.Stats()
	if lost := st.Losses[LostCorrupt]; lost.Batches == 0 || lost.Batches != uint64(20-len(seen)) || lost.Payload != 50000*lost.Batches {
		t.Fatalf("%d of 20 came, losses %+v", len(seen), lost)
	}
	if st.Quarantined != 1 {
		t.Fatalf("%d files set aside, want 1", st.Quarantined)
	}
	mustClose(t, q)
	stop()
}

// TestOpenSyncsWhatAKilledProcessLeft: a commit that only the page cache has, because its
// process was killed before the fdatasync, is believed by the next start only once the
// disk has it too.
func TestOpenSyncsWhatAKilledProcessLeft(t *testing.T) {
	dir, stop := startPower(t)
	q := mustOpen(t, dir, powerOptions())
	for n := uint64(1); n <= 5; n++ {
		mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, n, 1000)}})
	}
	mustClose(t, q)
	path := filepath.Join(dir, segmentName(1))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0) // the same bytes, not synced
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(0), writeAll(f, b), f.Close()); err != nil {
		t.Fatal(err)
	}
	q = mustOpen(t, dir, powerOptions())
	if err := os.Mkdir(filepath.Join(dir, "done-5"), 0o700); !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	mustClose(t, q)
	ops := stop()
	r := rand.New(rand.NewPCG(1, 2))
	for k := range ops {
		if ops[k].Kind != 'm' {
			continue
		}
		img := filepath.Join(t.TempDir(), "disk")
		for range 20 {
			diskAfter(t, ops[:k], r, img)
			q := mustOpen(t, img, powerOptions())
			c := mustCursor(t, q, "out")
			for n := uint64(1); n <= 5; n++ {
				if it := mustNext(t, c); it.Seq != n {
					t.Fatalf("got %d, want %d", it.Seq, n)
				}
			}
			mustClose(t, q)
		}
	}
}

func writeAll(f *os.File, b []byte) error {
	_, err := f.WriteAt(b, 0)
	return err
}
