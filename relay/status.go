package relay

import (
	"ftfuse/config"
	"ftfuse/internal/report"
	"ftfuse/internal/status"
)

// status is what the role says of itself.
func (r *Relay) status() status.Role {
	st := r.Stats()
	s := status.Role{
		Role: string(config.RoleRelay), Host: r.c.Host, Node: r.q.Node().String(), Serving: r.serving.Load(),
		Listen: r.addr.String(), TLS: r.secure != nil, CertificateExpires: r.secure.Expires(),
		Peers: report.Peers(st.Server, map[string]uint64{"conflict": st.Conflicts, "foreign_host": st.Foreign}),

		Accepted:   report.Tally(st.Taken),
		Duplicates: st.Duplicates, Resent: report.Tally(st.Resent),
	}
	report.Forward(&s, st.Forward)
	s.Reload = r.o.Reload.State()
	s.Queue, s.Dropped = report.Queue(r.q)
	elsewhere := st.DroppedDownstream
	for reason, t := range st.DroppedUpstream {
		sum := elsewhere[reason]
		sum.Batches, sum.Records, sum.Payload = sum.Batches+t.Batches, sum.Records+t.Records, sum.Payload+t.Payload
		elsewhere[reason] = sum
	}
	s.DroppedElsewhere = report.Losses(elsewhere)
	s.Counters = []status.Counter{{
		Name: "taken_again_batches", Help: "Batches that were here before and were taken once more, for they had come another way.", Value: st.Again,
	}, {
		Name: "damaged_taken_again_batches", Help: "Batches that the disk had damaged and that came again from a node that kept them.", Value: r.q.Stats().Healed.Batches,
	}}
	if st.Sink != nil {
		s.Counters = append(s.Counters, st.Sink.Counters()...)
		if st.Sink.HeldFiles > 0 {
			s.Trouble = append(s.Trouble, "copies cannot be written to some files for now; the log names them")
		}
	}
	r.plugins.Report(&s)
	return s
}
