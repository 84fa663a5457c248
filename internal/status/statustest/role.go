// Package statustest has a status in which every field is set, for the tests of what is
// made of it.
package statustest

import (
	"reflect"
	"time"

	"ftfuse/internal/status"
)

// Now is the time of Role.
var Now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// Role is a relay with something to say about everything.
func Role() status.Role {
	ago := func(d time.Duration) time.Time { return Now.Add(-d) }
	tally := func(n uint64) status.Tally { return status.Tally{Batches: n, Records: 10 * n, Bytes: 1000 * n} }
	r := status.Role{
		Role: "relay", Host: "relay-a", Node: "00112233445566778899aabbccddeeff", Version: "v1.2.3", PID: 4711,
		Started: ago(26*time.Hour + 3*time.Second), Serving: true, Listen: "[::]:7400", Point: "/mnt/ftfuse", TLS: true,
		CertificateExpires: Now.Add(24 * time.Hour),
		Trouble:            []string{"the output file /data/a is held: no space left on device"},
		Reload: &status.Reload{
			Time: ago(10 * time.Second), Took: 0.25, Refused: []string{"/etc/ftfuse.toml:3: unknown key \"hots\"; write host"},
			Changed: []string{"relay.forward", "relay.queue.max_bytes"}, NeedsRestart: []string{"relay.listen: \":7400\" stays in force; line 9 says \":7401\""},
		},
		Queue: status.Queue{
			Bytes: 1500, MaxBytes: 8 << 30, DiskBytes: 12 << 20, Segments: 2, Quarantined: 1, DiskFull: true, Unread: "too many open files",
			Cursors: []status.Cursor{
				{Name: "apply"},
				{Name: "forward/colo", Backlog: tally(7), Oldest: ago(90 * time.Second)},
			},
			DeliveredLanes: 3, DeliveredRanges: 5, DeliveredBytes: 4096,
		},
		Forward: []status.Group{{
			Name: "colo", Mode: "any", Cursors: []string{"forward/colo"}, Acked: tally(100), Final: 90, AwaitingFinal: tally(10), FinalResent: 1,
			Resent: 2, ResentRanges: []status.LaneRanges{{Lane: "00/1-2/0/3", Ranges: [][2]uint64{{5, 6}}}}, Failovers: 1, Failbacks: 1, Refused: 3,
			Destinations: []status.Destination{
				{
					Address: "10.0.0.1:7401", Configured: "srv+_ftfuse._tcp.example.org", Cursor: "forward/colo", Primary: true,
					State: status.StateHoldDown, Since: ago(time.Minute), HoldUntil: Now.Add(30 * time.Second), Peer: "agg-1",
					Flows: 4, Waiting: 1, InFlight: 6, InFlightBytes: 6 << 20, Window: 64 << 20, LastAck: ago(1500 * time.Millisecond),
					RTT: 0.00034, Connects: 2, Failures: 3, LastError: "connection refused", Sent: 110, SentBytes: 110 << 10, Resent: 5, Acked: 100, Refused: 1,
				},
				{Address: "10.0.0.2:7401", Cursor: "forward/colo", State: status.StateConnecting, Window: 64 << 20},
			},
		}},
		Peers: &status.Peers{
			Connections: []status.Peer{
				{
					Address: "10.0.1.1:5000", Host: "web-01", Role: "mount", Names: []string{"web-01"}, Since: ago(time.Hour),
					LastBatch: ago(time.Second), Batches: 40, Bytes: 40 << 10, Refused: 1, Blocked: true,
				},
				{Address: "10.0.1.2:5000", Host: "web-02", Role: "mount", Since: ago(time.Hour)},
			},
			TurnedAway: 1, Denied: 2, Failed: 3, Evicted: 4, Slow: 8, Pending: 5, Refused: map[string]uint64{"conflict": 1, "denied": 2},
		},
		ResentRanges: []status.LaneRanges{{Lane: "00/1-2/0/3", Ranges: [][2]uint64{{1, 1}, {3, 9}}}},
		Accepted:     tally(110), Delivered: tally(100), Resent: tally(2), Duplicates: 9,
		Dropped:          []status.Loss{{Reason: "expired", Tally: tally(1)}, {Reason: "no_cursor", Tally: tally(2)}},
		DroppedElsewhere: []status.Loss{{Reason: "drop_oldest", Tally: tally(4)}}, Relabelled: 1,
		Counters: []status.Counter{
			{Name: "possible_double_bytes", Help: "Bytes that may stand twice.", Value: 12},
			{Name: "held_files", Help: "Output files that cannot be written to.", Gauge: true, Value: 1},
			{Name: "untransferred_bytes", Help: "Bytes that a rule kept here.", Rule: "**/*.gz", Value: 5},
			{Name: "dead_letter_records", Help: "Records that could not be written."},
		},
	}
	r.Stamp(Now)
	return r
}

// Unset names the fields of v that are zero in it and in all elements of its slices.
func Unset(v any) []string {
	set := map[string]bool{}
	walk("", reflect.ValueOf(v), set)
	var names []string
	for name, ok := range set {
		if !ok {
			names = append(names, name)
		}
	}
	return names
}

func walk(path string, v reflect.Value, set map[string]bool) {
	switch {
	case v.Kind() == reflect.Pointer && !v.IsNil():
		walk(path, v.Elem(), set)
	case v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]():
		for i := range v.NumField() {
			walk(path+"."+v.Type().Field(i).Name, v.Field(i), set)
		}
	case v.Kind() == reflect.Slice && v.Len() > 0 && v.Index(0).Kind() == reflect.Struct:
		for i := range v.Len() {
			walk(path, v.Index(i), set)
		}
	default:
		set[path] = set[path] || !v.IsZero()
	}
}
