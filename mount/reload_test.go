package mount

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/service"
	"ftfuse/mount/procs"
)

// TestARefusedReloadLosesNothing: what the groups that there are pass on while a reload is under
// way that is refused in the end, here for an output whose directory cannot be made, was counted
// as lost for the group that was to come, and told as a skip.
func TestARefusedReloadLosesNothing(t *testing.T) {
	base := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r := routeRun(t, filepath.Join(base, "state"), routed([]string{"a"}, nil))
	r.log = slog.New(slog.DiscardHandler)
	r.now.Store(r.cfg)
	must(r.openOutputs(t.Context()))
	t.Cleanup(func() { _ = r.queue.Close(); _ = r.sink.Close() })
	var err error
	r.plugins, err = service.OpenPlugins(r.cfg, config.RoleMount, r.queue, nil, r.log)
	must(err)
	cur, err := r.queue.Cursor("forward/a")
	must(err)
	pass := func() {
		t.Helper()
		item, err := cur.Next(t.Context())
		must(err)
		cur.Ack(item.Seq)
		must(r.queue.Flush(t.Context()))
	}

	putRoute(t, r, 0, 1)
	m := routed([]string{"a", "b"}, nil)
	m.Rules[0].Output = filepath.Join(base, "file", "%F")
	must(os.WriteFile(filepath.Join(base, "file"), nil, 0o644))
	next := *r.cfg
	next.Mount = m
	must(failpoint.Set("forward/added", "pause"))
	defer failpoint.Clear("forward/added")
	done := make(chan error, 1)
	go func() {
		_, err := r.Reload(t.Context(), r.cfg, &next)
		done <- err
	}()
	eventually(t, "the new cursor", func() bool { _, err := r.queue.Cursor("forward/b"); return err == nil })
	pass()
	putRoute(t, r, 0, 2)
	pass()
	putRoute(t, r, 0, 3)
	failpoint.Clear("forward/added")
	if err := <-done; err == nil {
		t.Fatal("an output below a file was taken over")
	}
	must(r.queue.Flush(t.Context()))
	own := batch.Lane{Origin: r.origin}
	if s := r.queue.Stats(); len(s.Losses) != 0 || len(r.queue.LostRanges(own)) != 0 || s.Live.Batches != 1 {
		t.Errorf("a refused reload: lost %+v, named %v, %d batches are queued, want 1", s.Losses, r.queue.LostRanges(own), s.Live.Batches)
	}
	wantWaiting(t, r, map[string][]uint32{"forward/a": {0}})
	pass()
	if s := r.queue.Stats(); s.Live.Batches != 0 {
		t.Errorf("%d batches are left when the group has all", s.Live.Batches)
	}
}

// TestAReloadRaisesTheMemoryLimit: what outputs and windows that a reload brings may hold was
// taken from a limit for those of the start, and the garbage collector ran without an end.
func TestAReloadRaisesTheMemoryLimit(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "")
	was := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(was) })
	base := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m := routed([]string{"a"}, nil)
	m.Queue.Compression = config.CompressionNone
	limitMemory(m)
	r := &role{
		cfg: &config.Config{StateDir: filepath.Join(base, "state"), Mount: m}, m: m, log: slog.New(slog.DiscardHandler),
		wiring: make(chan struct{}), procs: procs.New(), mounted: true,
		srv: &server{o: settings{rules: newRuleView(m.Rules)}},
	}
	close(r.wiring)
	must(r.openStore())
	r.now.Store(r.cfg)
	must(r.openOutputs(t.Context()))
	t.Cleanup(func() { _ = r.store.Close(); _ = r.queue.Close(); _ = r.sink.Close() })
	var err error
	r.plugins, err = service.OpenPlugins(r.cfg, config.RoleMount, r.queue, nil, r.log)
	must(err)
	must(r.cap.Recover(t.Context(), nil))
	ctx, cancel := context.WithCancel(t.Context())
	defer r.wg.Wait()
	defer cancel()
	r.start(ctx, "capture", r.cap.Run)

	next := *r.cfg
	next.Mount = routed([]string{"a"}, nil)
	next.Mount.Rules[0].Output = filepath.Join(base, "out", "%F")
	before := debug.SetMemoryLimit(-1)
	_, err = r.Reload(t.Context(), r.cfg, &next)
	must(err)
	if got, want := debug.SetMemoryLimit(-1), before+outputMemory; got != want {
		t.Errorf("after a reload with an output the limit is %d, want %d", got, want)
	}
}
