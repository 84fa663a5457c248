// Package status is what a role says of itself: the document that `ftfuse status --json`
// prints and that the metrics and the status page are made of, and its form for people.
//
// Counters count since the role started, losses since its queue was made. Bytes of a
// [Tally] are what programs wrote, not what it takes to store it. A field that is added
// later is absent from what an older version says; nothing is renamed.
package status

import (
	"fmt"
	"time"
)

// Version of the binary; main sets it before a role starts.
var Version = "devel"

// Product is what a node calls its program in a handshake.
func Product() string { return "ftfuse/" + Version }

// Role is one role at one moment. Version, PID, Started and Now are filled in by whoever
// serves it (internal/control).
type Role struct {
	Role    string    `json:"role"`
	Host    string    `json:"host"`
	Node    string    `json:"node"`
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Now     time.Time `json:"now"`

	Serving bool   `json:"serving"`         // the line ready was logged, and no stop asked for
	Listen  string `json:"listen,omitzero"` // of a relay and a receiver
	Point   string `json:"point,omitzero"`  // of a mount
	TLS     bool   `json:"tls"`
	// CertificateExpires is when the role's own certificate is over; zero: no TLS.
	CertificateExpires time.Time `json:"certificate_expires,omitzero"`
	Trouble            []string  `json:"trouble,omitzero"` // what an operator should look at, one sentence each

	Reload *Reload `json:"reload,omitempty"` // the newest; nil: none since the start

	Queue   Queue   `json:"queue"`
	Forward []Group `json:"forward,omitzero"`
	Peers   *Peers  `json:"peers,omitzero"` // nil: the role listens to nobody

	Accepted     Tally        `json:"accepted"`               // captured, or taken from peers, and on disk
	Delivered    Tally        `json:"delivered"`              // with the next node (each group counts), or in the outputs
	ResentRanges []LaneRanges `json:"resent_ranges,omitzero"` // which batches Resent counts, as far as they are remembered
	Duplicates   uint64       `json:"duplicates"`             // batches that came again and were answered from the delivered set
	Resent       Tally        `json:"resent"`                 // taken with the mark that another receiver may have them too

	Dropped          []Loss `json:"dropped,omitzero"`           // by this node
	Relabelled       uint64 `json:"relabelled_batches"`         // refused as conflicts, sent on under a new id
	DroppedElsewhere []Loss `json:"dropped_elsewhere,omitzero"` // as other nodes told; since the start

	Counters []Counter `json:"counters,omitzero"` // what only this role counts
}

// Reload is what became of a wish to read the configuration again. Each of its sentences
// names the file and the line, or the key.
type Reload struct {
	Time         time.Time `json:"time"`
	Took         float64   `json:"took_seconds"`
	Refused      []string  `json:"refused,omitzero"`       // why nothing changed; empty: it was taken over
	Changed      []string  `json:"changed,omitzero"`       // the keys
	NeedsRestart []string  `json:"needs_restart,omitzero"` // what stays as it was until then
}

// Tally counts batches, the records in them and the bytes that programs wrote.
type Tally struct {
	Batches uint64 `json:"batches"`
	Records uint64 `json:"records"`
	Bytes   uint64 `json:"bytes"`
}

// Loss is what was dropped for one reason.
type Loss struct {
	Reason string `json:"reason"` // a name: letters, digits and underscores
	Tally
}

// LaneRanges names batches of one lane.
type LaneRanges struct {
	Lane   string      `json:"lane"`
	Ranges [][2]uint64 `json:"ranges"` // first and last number of each
}

// Counter is a number of one role. In the metrics it is ftfuse_<Name>_total, or
// ftfuse_<Name> where it is a gauge.
type Counter struct {
	Name  string `json:"name"` // letters, digits and underscores; its unit last: dead_letter_bytes
	Help  string `json:"help"` // one line
	Gauge bool   `json:"gauge,omitzero"`
	Rule  string `json:"rule,omitzero"` // the rule that it is about
	Value uint64 `json:"value"`
}

// Queue is a role's durable queue.
type Queue struct {
	Bytes       int64    `json:"bytes"` // stored and still needed, with what surrounds the payload
	MaxBytes    int64    `json:"max_bytes"`
	DiskBytes   int64    `json:"disk_bytes"` // allocated by its files
	Segments    int      `json:"segments"`
	Quarantined int      `json:"quarantined"` // damaged files set aside
	DiskFull    bool     `json:"disk_full"`
	Unread      string   `json:"unread,omitzero"` // why it cannot be read for now, which is tried again
	Cursors     []Cursor `json:"cursors"`

	DeliveredLanes  int   `json:"delivered_lanes"`  // of the delivered set
	DeliveredRanges int   `json:"delivered_ranges"` // of the delivered set
	DeliveredBytes  int64 `json:"delivered_bytes"`  // of the delivered set on disk
}

// Cursor is what one consumer of a queue has still to do.
type Cursor struct {
	Name    string    `json:"name"`
	Backlog Tally     `json:"backlog"`
	Oldest  time.Time `json:"oldest,omitzero"`             // when the oldest of it was sealed; zero: empty, or not known
	Age     float64   `json:"oldest_age_seconds,omitzero"` // of Oldest; filled in with Now
}

// States of a destination.
const (
	StateConnected    = "connected"    // and used when batches go there
	StateConnecting   = "connecting"   // no connection now; tried again and again
	StateReconnecting = "reconnecting" // its connection ended a moment ago
	StateFailedOver   = "failed over"  // its lanes went to others; tried again and again
	StateHoldDown     = "hold-down"    // healthy again, not used before HoldUntil
	StateStalled      = "stalled"      // connected, and stays behind; its lanes go to others
	StateDraining     = "draining"     // it said that it stops
)

// Group is one forward group.
type Group struct {
	Name    string   `json:"name"`
	Mode    string   `json:"mode"`
	Cursors []string `json:"cursors"` // of the queue: one; of broadcast one for each primary

	Acked         Tally        `json:"acked"`                  // the next nodes have them on their disks; each cursor counts
	Final         uint64       `json:"final_batches"`          // the last nodes have them in their outputs
	AwaitingFinal Tally        `json:"awaiting_final"`         // acked, kept until they are final (keep_until)
	FinalResent   uint64       `json:"final_resent_batches"`   // sent again because they did not become final
	Resent        uint64       `json:"resent_batches"`         // sent to one destination after they were in flight to another
	ResentRanges  []LaneRanges `json:"resent_ranges,omitzero"` // which those are, as far as they are remembered
	Failovers     uint64       `json:"failovers"`              // flows that left a destination that failed
	Failbacks     uint64       `json:"failbacks"`              // flows that went back
	Refused       uint64       `json:"refused_everywhere"`     // batches that every destination refuses now; tried again

	Destinations []Destination `json:"destinations"`
}

// Destination is one host of a group.
type Destination struct {
	Address    string    `json:"address"`             // as configured; for a service the host that stands for it
	Configured string    `json:"configured,omitzero"` // the service, if Address is of one
	Cursor     string    `json:"cursor,omitzero"`     // broadcast
	Primary    bool      `json:"primary"`
	State      string    `json:"state"`
	Since      time.Time `json:"since,omitzero"`
	HoldUntil  time.Time `json:"hold_until,omitzero"`
	Peer       string    `json:"peer,omitzero"`   // the host that it says it is
	Flows      int       `json:"flows"`           // lanes, or buckets of a host, whose home it is
	Waiting    int       `json:"waiting_batches"` // for room in the window

	InFlight      int       `json:"in_flight_batches"`
	InFlightBytes int64     `json:"in_flight_bytes"`
	Window        int64     `json:"window_bytes"`
	LastAck       time.Time `json:"last_ack,omitzero"`
	RTT           float64   `json:"rtt_seconds,omitzero"`
	Connects      uint64    `json:"connects"`
	Failures      uint64    `json:"failures"`
	LastError     string    `json:"last_error,omitzero"`
	Sent          uint64    `json:"sent_batches"`
	SentBytes     uint64    `json:"sent_bytes"` // of sealed batches, resent ones included
	Resent        uint64    `json:"resent_batches"`
	Acked         uint64    `json:"acked_batches"`
	Refused       uint64    `json:"refused_batches"`
}

// Peers is who sends to this role.
type Peers struct {
	Connections []Peer            `json:"connections"`
	TurnedAway  uint64            `json:"turned_away"` // connections above the limits
	Denied      uint64            `json:"denied"`      // handshakes of peers that may not speak for their host
	Failed      uint64            `json:"failed"`      // handshakes that failed, those of denied peers included
	Evicted     uint64            `json:"evicted"`     // connections that gave way to others before their handshake was done
	Slow        uint64            `json:"slow"`        // connections ended because their batch came slowly while others waited for the room it held
	Pending     int64             `json:"pending_bytes"`
	Refused     map[string]uint64 `json:"refused,omitzero"` // batches, by reason
}

// Peer is one connection.
type Peer struct {
	Address   string    `json:"address"`
	Host      string    `json:"host"`
	Role      string    `json:"role"`
	Names     []string  `json:"names,omitzero"` // of its certificate
	Since     time.Time `json:"since"`
	LastBatch time.Time `json:"last_batch,omitzero"`
	Batches   uint64    `json:"batches"`
	Bytes     uint64    `json:"bytes"` // of sealed batches
	Refused   uint64    `json:"refused"`
	Blocked   bool      `json:"blocked"` // held up, because this role cannot take more
}

// NotReady says why the role is not ready to take more; "" when it is.
func (r *Role) NotReady() string {
	switch {
	case !r.Serving:
		return "it does not serve yet, or is stopping"
	case r.Queue.DiskFull:
		return "the disk of the queue is full"
	case r.Queue.Bytes >= r.Queue.MaxBytes && r.Queue.MaxBytes > 0:
		return "the queue is at max_bytes"
	}
	return ""
}

// expirySoon is how long before its end a certificate is trouble.
const expirySoon = 30 * 24 * time.Hour

// Stamp fills in Now and what follows from it.
func (r *Role) Stamp(now time.Time) {
	r.Now = now
	for i := range r.Queue.Cursors {
		if c := &r.Queue.Cursors[i]; !c.Oldest.IsZero() {
			c.Age = max(0, now.Sub(c.Oldest).Seconds())
		}
	}
	if r.Queue.Unread != "" {
		r.Trouble = append(r.Trouble, "the queue cannot be read for now ("+r.Queue.Unread+"); it is tried again")
	}
	if end := r.CertificateExpires; !end.IsZero() && now.Add(expirySoon).After(end) {
		r.Trouble = append(r.Trouble, fmt.Sprintf("the certificate is good until %s only; `ftfuse cert host --replace` makes another", end.UTC().Format(time.DateTime)))
	}
}
