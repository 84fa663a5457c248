package report

import (
	"reflect"
	"testing"
	"time"

	"ftfuse/internal/forward"
	"ftfuse/internal/status"
	"ftfuse/queue"
	"ftfuse/transport"
)

func tally(n uint64) queue.Tally {
	return queue.Tally{Batches: n, Records: 10 * n, Payload: 100 * n, Bytes: 1000 * n}
}

func said(n uint64) status.Tally { return status.Tally{Batches: n, Records: 10 * n, Bytes: 100 * n} }

// A group of broadcast has several cursors: they are added up, and each destination says
// which one it serves.
func TestAGroupIsTheSumOfItsLines(t *testing.T) {
	now := time.Now()
	line := func(cursor string, n uint64) forward.LineStats {
		return forward.LineStats{
			Cursor: cursor, Waiting: tally(n), Unfinal: tally(n + 1), Acked: tally(n + 2), Refused: int(n + 3), Final: n + 4,
			Doubtful: n + 5, Resent: n + 6, Failovers: n + 7, Failbacks: n + 8,
			Destinations: []forward.DestinationStats{{Address: cursor, Secondary: n == 2, State: status.StateHoldDown, Since: now, Until: now, Flows: 1, Waiting: 2}},
		}
	}
	var r status.Role
	Forward(&r, forward.Stats{
		Groups:  []forward.GroupStats{{Name: "g", Mode: forward.Broadcast, Lines: []forward.LineStats{line("a", 1), line("b", 2)}}},
		Skipped: map[string]queue.Tally{"expired": tally(7), "corrupt": tally(8)}, Relabelled: 9,
	})
	if r.Delivered != said(7) || r.Relabelled != 9 {
		t.Errorf("delivered %+v, relabelled %d", r.Delivered, r.Relabelled)
	}
	if want := []status.Loss{{Reason: "corrupt", Tally: said(8)}, {Reason: "expired", Tally: said(7)}}; !reflect.DeepEqual(r.DroppedElsewhere, want) {
		t.Errorf("dropped elsewhere: %+v", r.DroppedElsewhere)
	}
	dest := func(cursor string, primary bool) status.Destination {
		return status.Destination{Address: cursor, Cursor: cursor, Primary: primary, State: status.StateHoldDown, Since: now, HoldUntil: now, Flows: 1, Waiting: 2}
	}
	want := status.Group{
		Name: "g", Mode: string(forward.Broadcast), Cursors: []string{"a", "b"}, Acked: said(7), Final: 11, AwaitingFinal: said(5),
		FinalResent: 15, Resent: 13, Failovers: 17, Failbacks: 19, Refused: 9, Destinations: []status.Destination{dest("a", true), dest("b", false)},
	}
	if len(r.Forward) != 1 || !reflect.DeepEqual(r.Forward[0], want) {
		t.Errorf("got  %+v\nwant %+v", r.Forward, want)
	}
}

// What the server refuses and what the role refuses are one account.
func TestRefusalsAreCountedTogether(t *testing.T) {
	p := Peers(transport.ServerStats{DeniedData: 2, DeniedLane: 9, Denied: 3, Failed: 4, Evicted: 5, Slow: 10, TurnedAway: 6, Pending: 7}, map[string]uint64{"denied": 1, "conflict": 8})
	want := &status.Peers{
		Connections: []status.Peer{}, Denied: 3, Failed: 4, Evicted: 5, Slow: 10, TurnedAway: 6, Pending: 7,
		Refused: map[string]uint64{"denied": 3, "lanes": 9, "conflict": 8},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("got  %+v\nwant %+v", p, want)
	}
}

func TestQueueOfARole(t *testing.T) {
	q, err := queue.Open(t.TempDir(), queue.Options{Cursors: []string{"a", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	s, losses := Queue(q)
	if len(s.Cursors) != 2 || s.Cursors[0].Name != "a" || s.MaxBytes == 0 || s.Segments != 1 || s.DiskBytes == 0 || len(losses) != 0 {
		t.Errorf("got %+v, %v", s, losses)
	}
}
