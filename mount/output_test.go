package mount

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/queue"
)

// TestAnOutputThatIsTakenAwayGetsWhatWasCaptured: also while another one has a full disk, and
// itself: all of it has its place before the output is gone, and is written when it can be.
func TestAnOutputThatIsTakenAwayGetsWhatWasCaptured(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	base := t.TempDir()
	must(unix.Mount("tmpfs", base, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { _ = unix.Unmount(base, unix.MNT_DETACH) })
	m := routed(nil, nil, nil)
	m.Rules[0].Output, m.Rules[1].Output = base+"/stays/%F", base+"/goes/%F"
	r := routeRun(t, t.TempDir(), m)
	r.log = slog.New(slog.DiscardHandler)
	must(r.openOutputs(t.Context()))
	t.Cleanup(func() { _ = r.queue.Close(); _ = r.sink.Close() })
	var n uint64
	put := func(rule, batches int) {
		t.Helper()
		for range batches {
			n++
			b := record.NewBuilder(1000)
			b.Add(&record.Attr{Host: "h", Path: "p"}, []byte("line\n"))
			lane := batch.Lane{Origin: r.origin, Route: r.byRule[rule]}
			_, err := r.queue.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{{Batch: b.Seal(batch.ID{Lane: lane, N: n}, 1)}}})
			must(err)
		}
		must(r.queue.Flush(t.Context()))
	}
	work := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.sink.Apply(ctx) }()
		return func() { cancel(); <-done }
	}

	ballast := filepath.Join(base, "ballast")
	f, err := os.Create(ballast)
	must(err)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	must(f.Close())
	stop := work()
	put(0, 1)
	eventually(t, "the output that stays is held", func() bool { return r.sink.Stats().HeldFiles == 1 })
	stop()

	const batches = 3000 // more than get their places at once
	put(1, batches)
	defer work()()
	now := &config.Config{Mount: m, ShutdownTimeout: time.Minute}
	next := &config.Config{Mount: &config.Mount{Rules: m.Rules[:1]}}
	must(r.endOutputs(t.Context(), now, next))
	must(os.Remove(ballast))
	eventually(t, "all is written or dropped", func() bool {
		raw, _ := os.ReadFile(filepath.Join(base, "goes/p"))
		return strings.Count(string(raw), "\n")+int(r.sink.Stats().UnmatchedRecords) >= batches
	})
	if st := r.sink.Stats(); st.UnmatchedRecords != 0 {
		t.Errorf("%d of %d records that were captured for the output are dropped", st.UnmatchedRecords, batches)
	}
	eventually(t, "the output that stays", func() bool {
		raw, _ := os.ReadFile(filepath.Join(base, "stays/p"))
		return string(raw) == "line\n"
	})
}
