package forward

import (
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/transport"
)

// TestABatchOfAnotherHostIsRelabelledForEveryGroup: what was imported came with a route that
// its own host numbered. Under this host's name that number would be one of its own routes,
// and the new copy would miss groups that the old one was for.
func TestABatchOfAnotherHostIsRelabelledForEveryGroup(t *testing.T) {
	x := GroupConfig{Name: "x", Mode: Any, Primary: []string{"a" + simPort}}
	y := GroupConfig{Name: "y", Mode: Any, Primary: []string{"b" + simPort}}
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
		refuse := func(b batch.Sealed) (v transport.Verdict, _ bool) {
			if b.ID.Lane == foreign || b.ID.Lane == own {
				v.Code = transport.Conflict
			}
			return v, true
		}
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
	}, x, y)
}
