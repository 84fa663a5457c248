package mount

import (
	"strings"
	"testing"
	"time"
)

// takeoverPoints are the places of a takeover, in its order.
var takeoverPoints = []string{
	"mount/takeover", "mount/restored", "capture/epoch", "capture/replayed", "mount/attached", "mount/resumed", "mount/resent",
}

// killed is how many workers have ended without having been asked, and whether one has said
// since then that it serves.
func (r *rig) killed() (n int, served bool) {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	for _, line := range r.log.lines {
		if strings.Contains(line, "worker ended, starting another") {
			n, served = n+1, false
		}
		served = served || strings.Contains(line, "msg=ready")
	}
	return n, served
}

// awaitKilled waits until n workers have ended without having been asked, and another serves.
func (r *rig) awaitKilled(n int) {
	r.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		got, served := r.killed()
		if got >= n && served {
			return
		}
		select {
		case _, ok := <-r.log.more:
			if !ok {
				r.t.Fatal("the daemon has ended")
			}
		case <-limit:
			r.t.Fatalf("%d workers were killed, want %d; another serves: %v", got, n, served)
		}
	}
}

// TestKilledAgainInItsTakeover: what happens to the worker in TestResent happens to the next
// one in its takeover, at each of its steps. The third is asked again.
func TestKilledAgainInItsTakeover(t *testing.T) {
	t.Parallel()
	for i, c := range resendCases() {
		points := takeoverPoints
		if soak(0, 1) == 0 {
			points = points[i%len(points):][:1] // each is met by six cases
		}
		for _, point := range points {
			t.Run(c.name+", "+point, func(t *testing.T) {
				t.Parallel()
				r := newHeldRig(t, c.extra, c.points+";"+point+"=kill#2")
				c.run(t, r, 2)
			})
		}
	}
}

// TestKilledAgainWhereTheFirstWas: the next worker dies where the first did, as it does
// what it is asked again, and the third is asked for the third time.
func TestKilledAgainWhereTheFirstWas(t *testing.T) {
	t.Parallel()
	for _, c := range resendCases() {
		if c.once {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			point, _, _ := strings.Cut(c.points, "=")
			r := newHeldRig(t, c.extra, c.points+";"+point+"=kill#2")
			c.run(t, r, 2)
		})
	}
}
