package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"ftfuse/internal/status"
)

// role adds all that r says.
func (f families) role(r *status.Role) {
	f.gauge("serving", "1 while the role serves and no stop was asked for.", boolean(r.Serving))
	f.gauge("ready", "1 while the role can take more, as /readyz says.", boolean(r.NotReady() == ""))
	if l := r.Reload; l != nil {
		f.gauge("reload_timestamp_seconds", "Unix time of the newest wish to read the configuration again.", timestamp(l.Time))
		f.gauge("reload_refused", "1 where it was refused, and the configuration before it stays.", boolean(len(l.Refused) > 0))
		f.gauge("reload_waiting_keys", "Keys that were changed and wait for a restart.", float64(len(l.NeedsRestart)))
	}
	f.gauge("certificate_expiry_timestamp_seconds", "Unix time at which the role's certificate is over; 0: no TLS.", timestamp(r.CertificateExpires))
	f.tally("accepted", "captured, or taken from peers, and on disk.", r.Accepted)
	f.tally("delivered", "acknowledged by the next node (each group counts), or in the outputs.", r.Delivered)
	f.tally("received_resent", "taken that another receiver may have too.", r.Resent)
	f.counter("duplicate_batches", "Batches that came again and were answered from the delivered set.", r.Duplicates)
	f.counter("relabelled_batches", "Batches refused as conflicts, sent on under a new id.", r.Relabelled)
	f.losses("dropped", "dropped by this node", r.Dropped)
	f.losses("dropped_elsewhere", "dropped by other nodes, as they told", r.DroppedElsewhere)
	f.queue(&r.Queue)
	for i := range r.Forward {
		f.group(&r.Forward[i])
	}
	if r.Peers != nil {
		f.peers(r.Peers)
	}
	for _, c := range r.Counters {
		kind, label := prometheus.CounterValue, ""
		if c.Gauge {
			kind = prometheus.GaugeValue
		}
		if c.Rule != "" {
			label = "rule"
		}
		f.add(kind, c.Name, c.Help, label, c.Rule, float64(c.Value))
	}
}

func (f families) queue(q *status.Queue) {
	f.gauge("queue_bytes", "Bytes in the queue that are still needed, with what surrounds the payload.", float64(q.Bytes))
	f.gauge("queue_max_bytes", "The limit at which on_full decides.", float64(q.MaxBytes))
	f.gauge("queue_disk_bytes", "Bytes allocated by the files of the queue.", float64(q.DiskBytes))
	f.gauge("queue_segments", "Segment files of the queue.", float64(q.Segments))
	f.gauge("queue_quarantined_files", "Damaged segment files that were set aside.", float64(q.Quarantined))
	f.gauge("queue_disk_full", "1 while the disk of the queue is full.", boolean(q.DiskFull))
	f.gauge("delivered_set_lanes", "Lanes in the delivered set.", float64(q.DeliveredLanes))
	f.gauge("delivered_set_ranges", "Ranges in the delivered set.", float64(q.DeliveredRanges))
	f.gauge("delivered_set_bytes", "Bytes of the delivered set on disk.", float64(q.DeliveredBytes))
	for _, c := range q.Cursors {
		gauge := func(name, help string, v float64) {
			f.add(prometheus.GaugeValue, "backlog_"+name, help, "peer", c.Name, v)
		}
		gauge("batches", "Batches that a cursor has not passed.", float64(c.Backlog.Batches))
		gauge("records", "Records that a cursor has not passed.", float64(c.Backlog.Records))
		gauge("bytes", "Bytes that programs wrote and a cursor has not passed.", float64(c.Backlog.Bytes))
		gauge("oldest_age_seconds", "Age of the oldest batch that a cursor has not passed; 0: none.", c.Age)
	}
}

func (f families) group(g *status.Group) {
	counter := func(name, help string, v uint64) {
		f.add(prometheus.CounterValue, "group_"+name, help, "peer", g.Name, float64(v))
	}
	counter("acked_batches", "Batches that the next node has on its disk.", g.Acked.Batches)
	counter("acked_records", "Records that the next node has on its disk.", g.Acked.Records)
	counter("acked_bytes", "Bytes that programs wrote and the next node has on its disk.", g.Acked.Bytes)
	counter("final_batches", "Batches that the last node has in its output.", g.Final)
	counter("final_resent_batches", "Batches sent again because they did not become final in time.", g.FinalResent)
	counter("failovers", "Times that lanes were moved away from a destination.", g.Failovers)
	counter("failbacks", "Times that lanes were moved back to a destination.", g.Failbacks)
	counter("resent_batches", "Batches sent to one destination after they were in flight to another.", g.Resent)
	gauge := func(name, help string, v float64) {
		f.add(prometheus.GaugeValue, "group_"+name, help, "peer", g.Name, v)
	}
	gauge("awaiting_final_batches", "Batches that the next node has, kept until they are final.", float64(g.AwaitingFinal.Batches))
	gauge("awaiting_final_records", "Records that the next node has, kept until they are final.", float64(g.AwaitingFinal.Records))
	gauge("awaiting_final_bytes", "Bytes that programs wrote, which the next node has, kept until they are final.", float64(g.AwaitingFinal.Bytes))
	gauge("refused_batches", "Batches that every destination refuses now; they are tried again.", float64(g.Refused))
	for i := range g.Destinations {
		f.destination(g.Name, &g.Destinations[i])
	}
}

func (f families) destination(group string, d *status.Destination) {
	who := group + "/" + d.Address
	gauge := func(name, help string, v float64) {
		f.add(prometheus.GaugeValue, "destination_"+name, help, "peer", who, v)
	}
	gauge("connected", "1 while the destination is connected, in use or not.", boolean(connected(d.State)))
	gauge("used", "1 while the destination is connected and may get batches.", boolean(d.State == status.StateConnected))
	gauge("primary", "1 for a primary destination, 0 for a secondary.", boolean(d.Primary))
	gauge("flows", "Lanes, or buckets of a host, whose home the destination is.", float64(d.Flows))
	gauge("waiting_batches", "Batches that wait for room in the window of the destination.", float64(d.Waiting))
	gauge("in_flight_batches", "Batches sent, or about to be, and not answered.", float64(d.InFlight))
	gauge("in_flight_bytes", "Bytes of sealed batches sent, or about to be, and not answered.", float64(d.InFlightBytes))
	gauge("window_bytes", "Bytes that may be in flight.", float64(d.Window))
	gauge("last_ack_timestamp_seconds", "Unix time of the last acknowledgement; 0: none yet.", timestamp(d.LastAck))
	gauge("rtt_seconds", "Round trip of the last ping.", d.RTT)
	counter := func(name, help string, v uint64) {
		f.add(prometheus.CounterValue, "destination_"+name, help, "peer", who, float64(v))
	}
	counter("connects", "Handshakes done.", d.Connects)
	counter("failures", "Tries and connections that failed.", d.Failures)
	counter("sent_batches", "Batches written, resent ones included.", d.Sent)
	counter("sent_bytes", "Bytes of sealed batches written, resent ones included.", d.SentBytes)
	counter("resent_batches", "Batches written again.", d.Resent)
	counter("acked_batches", "Batches acknowledged.", d.Acked)
	counter("refused_batches", "Batches refused.", d.Refused)
}

// connected reports whether there is a connection in this state.
func connected(state string) bool {
	switch state {
	case status.StateConnected, status.StateHoldDown, status.StateStalled, status.StateDraining:
		return true
	}
	return false
}

func (f families) peers(p *status.Peers) {
	f.gauge("peers", "Connections of peers.", float64(len(p.Connections)))
	f.counter("peers_turned_away", "Connections above the limits.", p.TurnedAway)
	f.counter("peers_denied", "Handshakes of peers that may not speak for their host.", p.Denied)
	f.counter("peers_evicted", "Connections that gave way to others before their handshake was done.", p.Evicted)
	f.counter("peers_slow", "Connections ended because their batch came slowly while others waited for the room it held.", p.Slow)
	f.counter("handshakes_failed", "Handshakes that failed, those of denied peers included.", p.Failed)
	f.gauge("pending_bytes", "Bytes taken from peers and not on disk yet.", float64(p.Pending))
	f.counter("refused_batches", "Batches refused, for any reason.", 0)
	for reason, n := range p.Refused {
		f.counter("refused_batches", "", n)
		f.counter("refused_"+reason+"_batches", "Batches refused, reason "+reason+".", n)
	}
	for _, c := range p.Connections {
		gauge := func(name, help string, v float64) {
			f.add(prometheus.GaugeValue, "peer_"+name, help, "peer", c.Host, v)
		}
		gauge("connections", "Connections of a host.", 1)
		gauge("blocked", "Connections of a host that are held up, because this role cannot take more.", boolean(c.Blocked))
	}
}
