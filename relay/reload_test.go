package relay

import (
	"slices"
	"testing"
	"time"

	"ftfuse/internal/failpoint"
)

// TestAReloadThatFailsHalfWayEndsTheRole, as it does a mount: it went on without sending
// anything, or with cursors that nobody reads for and that would fill the queue, and said that
// the old configuration stays. The next start does the rest, and nothing is lost.
func TestAReloadThatFailsHalfWayEndsTheRole(t *testing.T) {
	for _, step := range []string{"forward/paused", "forward/cursors", "forward/replaced"} {
		t.Run(step, func(t *testing.T) {
			a, b := newAggregator(t, 9), newAggregator(t, 8)
			both := newSetup(t, a, b)
			one := both
			one.Forwards = slices.Clone(both.Forwards[:1])
			x := start(t, one)
			f := newFeeder(1)
			f.connect(t, one.Listen)
			f.add("f", "before")
			f.expect(t, "final acks", f.allFinal)
			must(t, failpoint.Set(step, "error"))
			_, err := x.r.Reload(t.Context(), one.config(), both.config())
			failpoint.Clear(step)
			if err == nil {
				t.Fatal("a step failed, and the reload did not")
			}
			select {
			case err := <-x.done:
				if err == nil {
					t.Error("the role ended as if nothing had happened")
				}
			case <-time.After(testLimit):
				t.Fatal("the role goes on with half of a configuration")
			}
			start(t, both)
			f.add("f", "after")
			f.expect(t, "final acks", f.allFinal)
			a.check(f)
			b.expect("what came after it", b.has(1))
		})
	}
}
