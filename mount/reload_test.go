package mount

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/reload"
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
	// What only the cursor of b needed goes behind the back of the reload.
	eventually(t, "one batch is queued", func() bool { return r.queue.Stats().Live.Batches == 1 })
	own := batch.Lane{Origin: r.origin}
	if s := r.queue.Stats(); len(s.Losses) != 0 || len(r.queue.LostRanges(own)) != 0 {
		t.Errorf("a refused reload: lost %+v, named %v", s.Losses, r.queue.LostRanges(own))
	}
	wantWaiting(t, r, map[string][]uint32{"forward/a": {0}})
	pass()
	if s := r.queue.Stats(); s.Live.Batches != 0 {
		t.Errorf("%d batches are left when the group has all", s.Live.Batches)
	}
}

// reloadable is a role that has everything but a mount and destinations.
func reloadable(t *testing.T, base string, m *config.Mount) *role {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	m.Queue.Compression = config.CompressionNone
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
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); r.wg.Wait() })
	r.start(ctx, "capture", r.cap.Run)
	return r
}

// TestAReloadRaisesTheMemoryLimit: what outputs and windows that a reload brings may hold was
// taken from a limit for those of the start, and the garbage collector ran without an end.
func TestAReloadRaisesTheMemoryLimit(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "")
	was := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(was) })
	base := t.TempDir()
	m := routed([]string{"a"}, nil)
	limitMemory(m)
	r := reloadable(t, base, m)
	next := *r.cfg
	next.Mount = routed([]string{"a"}, nil)
	next.Mount.Rules[0].Output = filepath.Join(base, "out", "%F")
	before := debug.SetMemoryLimit(-1)
	if _, err := r.Reload(t.Context(), r.cfg, &next); err != nil {
		t.Fatal(err)
	}
	if got, want := debug.SetMemoryLimit(-1), before+outputMemory; got != want {
		t.Errorf("after a reload with an output the limit is %d, want %d", got, want)
	}
}

// TestRulesThatAreInForceCountAsChanged, also where the kernel's writing waits for a restart: the
// log and the status left them out.
func TestRulesThatAreInForceCountAsChanged(t *testing.T) {
	rules := func(of config.Attribution) *config.Mount {
		m := routed([]string{"a"}, nil)
		m.Queue.Compression = config.CompressionNone
		m.Rules[0].Path, m.Rules[0].Attribution = "**", of
		return m
	}
	r := reloadable(t, t.TempDir(), rules(config.AttributionWrite))
	h := reload.New(config.RoleMount, r.cfg, r.log)
	h.Serve(r)
	a, err := h.Reload(t.Context(), func() (*config.Config, error) {
		next := *r.cfg
		next.Mount = rules(config.AttributionOpen)
		return &next, nil
	})
	if err != nil || !slices.Equal(a.Changed, []string{"mount.rule"}) || len(a.Restart) != 1 {
		t.Errorf("changed %q, needs a restart %q, %v; want mount.rule, and one", a.Changed, a.Restart, err)
	}
}
