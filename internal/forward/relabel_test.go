package forward

import (
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/transport"
)

// twoGroups are x, with the destination a, and y, with b.
func twoGroups() []GroupConfig {
	return []GroupConfig{
		{Name: "x", Mode: Any, Primary: []string{"a" + simPort}},
		{Name: "y", Mode: Any, Primary: []string{"b" + simPort}},
	}
}

// onlyOneMayHaveIt has b get a batch, which answers so, and be away after a crash, and a, which it
// returns, refuse that batch as a conflict.
func (r *rig) onlyOneMayHaveIt(answer func(batch.Sealed) (transport.Verdict, bool)) *peerServer {
	r.o.Relabel = relabelAll
	b := r.up("b", 3, answer)
	r.start()
	r.submit(rigLane(1), 1, 1)
	for b.numbers() == "" {
		time.Sleep(time.Millisecond)
	}
	r.crash()
	r.down("b")
	a := r.up("a", 2, conflictsOn(rigLane(1)))
	r.start()
	return a
}

// TestABatchOfAnotherHostIsRelabelledForEveryGroup: what was imported came with a route that
// its own host numbered. Under this host's name that number would be one of its own routes,
// and the new copy would miss groups that the old one was for.
func TestABatchOfAnotherHostIsRelabelledForEveryGroup(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.Routes = func(route uint32) []string {
			if route == 1 {
				return []string{"y"}
			}
			return []string{"x", "y"}
		}
		r.o.Relabel = func(b batch.Sealed, id batch.ID) (batch.Sealed, error) {
			b.ID = id
			return b, nil
		}
		foreign, own := batch.Lane{Origin: batch.Origin{8}, Route: 1}, rigLane(1)
		own.Route = 1
		refuse := conflictsOn(foreign, own)
		a, b := r.up("a", 2, refuse), r.up("b", 3, refuse)
		r.start()
		r.submit(foreign, 1, 1)
		r.pass(3 * time.Second)
		r.submit(own, 1, 1)
		r.pass(3 * time.Second)
		routes := func(s *peerServer) (routes []uint32) {
			for _, s := range s.got {
				if s.ID.Lane != foreign && s.ID.Lane != own {
					routes = append(routes, s.ID.Lane.Route)
				}
			}
			return routes
		}
		if x, y := routes(a), routes(b); len(x) == 0 || x[0] != 0 || len(y) < 2 || y[0] != 0 || y[len(y)-1] != 1 {
			t.Errorf("relabelled with the routes %d at x, and %d at y; want 0 for the imported one at both and 1 for its own", x, y)
		}
	}, twoGroups()...)
}

// TestWhatAnotherGroupMayHaveIsAskedForBeforeItIsRelabelled: the ack of one group was lost
// with a crash, and the other group is told of a conflict. A new id for both would make the
// first receiver take the content a second time.
func TestWhatAnotherGroupMayHaveIsAskedForBeforeItIsRelabelled(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.onlyOneMayHaveIt(nil)
		r.pass(5 * time.Second)
		r.want("a, while nobody knows what b has", a.numbers(), "1")
		b := r.up("b", 3, nil)
		r.pass(10 * time.Second)
		r.want("b", b.numbers(), "1!")
		r.want("a", a.numbers(), "1 1")
		if r.waiting() != 0 {
			t.Errorf("%d wait", r.waiting())
		}
	}, twoGroups()...)
}

// TestTheOldIdBecomesFinalWheneverAKillComes: what is known of a new id is forgotten only
// with, or after, what it is known for.
func TestTheOldIdBecomesFinalWheneverAKillComes(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.Relabel = relabelAll
		foreign := batch.Lane{Origin: batch.Origin{8}, Epoch: batch.Epoch{Counter: 3, Random: 5}}
		a := r.up("a", 2, conflictsOn(foreign))
		r.o.OnFinal = func(lane batch.Lane, _ []batch.Range) {
			if lane != foreign {
				time.Sleep(3 * time.Second) // the new id is noted as final, the old one not yet
			}
		}
		r.start()
		r.submit(foreign, 1, 1)
		r.pass(5 * time.Second)
		r.want("a", a.numbers(), "1 1")
		a.server.Final(a.got[1].ID)
		r.pass(2500 * time.Millisecond)
		r.crash()
		for range 2 {
			r.start()
			r.pass(5 * time.Second)
			finals := r.f.Finals(foreign)
			r.want("final", finals.String(), "1")
			r.crash()
		}
		if keys := r.keys(prefixRelabel); len(keys) > 0 {
			t.Errorf("left behind: %q", keys)
		}
	}, single())
}

// TestWhatCannotBeRelabelledYetIsAskedForOnce: the other group may have it, and is away. Each
// reconnect brings the same refusal again.
func TestWhatCannotBeRelabelledYetIsAskedForOnce(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.onlyOneMayHaveIt(never)
		for range 5 {
			r.pass(5 * time.Second)
			r.down("a")
			a = r.up("a", 2, conflictsOn(rigLane(1)))
		}
		r.pass(5 * time.Second)
		r.f.relabels.mu.Lock()
		if n := len(r.f.relabels.queue); n != 1 {
			t.Errorf("one batch is to be relabelled %d times", n)
		}
		r.f.relabels.mu.Unlock()
		r.up("b", 3, nil)
		r.pass(20 * time.Second)
		r.want("a", a.numbers(), "1 1")
		if n := len(r.f.relabels.asked); n != 0 || r.waiting() != 0 {
			t.Errorf("%d are still to be relabelled, %d wait", n, r.waiting())
		}
	}, twoGroups()...)
}
