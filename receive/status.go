package receive

import (
	"ftfuse/config"
	"ftfuse/internal/report"
	"ftfuse/internal/status"
)

// status is what the role says of itself. The sink and the server are there: it is asked
// only when open is done.
func (r *Receiver) status() status.Role {
	st := r.Stats()
	s := status.Role{
		Role: string(config.RoleReceive), Host: r.c.Host, Node: r.q.Node().String(), Serving: r.serving.Load(),
		Listen: r.Addr().String(), TLS: r.secure != nil, CertificateExpires: r.secure.Expires(),
		Peers: report.Peers(r.server.Stats(), map[string]uint64{"conflict": st.Conflicts, "foreign_host": st.Foreign}),

		Accepted:   status.Tally{Batches: st.Batches, Records: st.Records, Bytes: st.Bytes},
		Delivered:  report.Tally(st.Synced),
		Duplicates: st.Duplicates, Resent: report.Tally(st.Resent),
		DroppedElsewhere: report.Losses(st.DroppedUpstream),
		Counters:         st.Stats.Counters(),
	}
	s.Reload = r.o.Reload.State()
	s.Queue, s.Dropped = report.Queue(r.q)
	s.Counters = append(s.Counters, status.Counter{
		Name: "damaged_taken_again_batches", Help: "Batches that the disk had damaged and that came again from a node that kept them.", Value: r.q.Stats().Healed.Batches,
	})
	for _, l := range st.ResentLanes {
		lane := status.LaneRanges{Lane: l.Lane.String()}
		for _, x := range l.IDs.All() {
			lane.Ranges = append(lane.Ranges, [2]uint64{x.First, x.Last})
		}
		s.ResentRanges = append(s.ResentRanges, lane)
	}
	if st.HeldFiles > 0 {
		s.Trouble = append(s.Trouble, "output files cannot be written to for now; the log names them")
	}
	r.plugins.Report(&s)
	return s
}
