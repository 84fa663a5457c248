package sink

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/failpoint"
	"ftfuse/queue"
)

const testLimit = 20 * time.Second // what takes longer has failed

// waitFor waits for a state that nothing announces.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.Now().Add(testLimit)
	for tick := time.NewTicker(time.Millisecond); !ok(); <-tick.C {
		if time.Now().After(limit) {
			t.Fatalf("waiting for %s", what)
		}
	}
}

// TestABacklogIsNotKeptInMemoryByPlans: the applier writes nothing; what waits for it is in
// the queue, on disk. What the queue drops meanwhile is forgotten here too.
func TestABacklogIsNotKeptInMemoryByPlans(t *testing.T) {
	dir := t.TempDir()
	q, err := queue.Open(filepath.Join(dir, "queue"), queue.Options{MaxBytes: 150 << 20, OnFull: queue.DropOldest, Dedupe: true, Cursors: []string{"apply"}})
	must(t, err)
	s, err := Open(t.Context(), Options{Queue: q, Cursor: "apply", Outputs: []Output{output1(dir+"/out", nil)}, DeadDir: dir + "/dead"})
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- s.Apply(ctx) }()
	go func() { done <- s.Checkpoints(ctx, func(...batch.ID) {}) }()
	must(t, failpoint.Set("sink/applied", "pause"))
	defer failpoint.Clear("sink/applied")
	from := newSealer(1)
	add := func(line string) {
		txn, err := s.Take(from.seal(rec{host: "h", path: "f", data: line}), "a test")
		must(t, err)
		_, err = q.Submit(t.Context(), txn)
		must(t, err)
	}
	line := strings.Repeat("p", 1<<20-100) + "\n"
	for range 200 {
		add(line)
	}
	plans := s.applier.plans
	plans.mu.Lock()
	var held int64
	for _, p := range plans.plans {
		held += p.data
	}
	plans.mu.Unlock()
	if held > maxPlanBytes || held < maxPlanBytes/2 {
		t.Errorf("plans hold %d bytes of batches, at most %d are wanted", held, maxPlanBytes)
	}
	failpoint.Clear("sink/applied")
	add("last\n")
	waitFor(t, "the last line", func() bool {
		raw, err := os.ReadFile(filepath.Join(dir, "out", "h", "f"))
		return err == nil && strings.HasSuffix(string(raw), "last\n")
	})
	must(t, s.Drain(t.Context()))
	waitFor(t, "nothing to be expected", func() bool {
		s.applier.mu.Lock()
		defer s.applier.mu.Unlock()
		return len(s.applier.ids) == 0
	})
	if len(plans.plans) != 0 || plans.bytes != 0 || len(s.applier.order) != 0 {
		t.Errorf("left are %d plans of %d bytes, %d ids", len(plans.plans), plans.bytes, len(s.applier.order))
	}
	stop()
	for range 2 {
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	must(t, q.Close())
	must(t, s.Close())
}
