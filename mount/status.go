package mount

import (
	"net/http"
	"time"

	"ftfuse/config"
	"ftfuse/internal/control"
	"ftfuse/internal/queuetool"
	"ftfuse/internal/report"
	"ftfuse/internal/status"
	"ftfuse/mount/capture"
	"ftfuse/mount/offline"
)

// openControl answers `ftfuse status` and HTTP from now on. Programs that have files of a
// mount that is taken over do not lose them because the address for HTTP is taken.
func (r *role) openControl() (err error) {
	o := control.Options{
		Dir: r.cfg.RoleDir(config.RoleMount), Status: r.status, HTTP: r.cfg.HTTPFor(config.RoleMount).Listen, Logger: r.log,
		Handlers: map[string]http.Handler{
			"/queue/": queuetool.Handler(r.queue, r.queue.Import), "/send/": offline.Handler(r.sendTarget()),
		},
	}
	r.ctl, err = control.Start(o)
	if err != nil && r.taken.fd >= 0 && o.HTTP != "" {
		r.log.Error("going on without http", "err", err)
		o.HTTP = ""
		r.ctl, err = control.Start(o)
	}
	return err
}

// status is what the role says of itself.
func (r *role) status() status.Role {
	s := status.Role{
		Role: string(config.RoleMount), Host: r.cfg.Host, Node: r.queue.Node().String(), Serving: r.serving.Load(),
		Point: r.m.Point, TLS: r.secure != nil, CertificateExpires: r.secure.Expires(),
	}
	s.Reload = r.reload.State()
	s.Queue, s.Dropped = report.Queue(r.queue)
	report.Forward(&s, r.fwd.Stats())
	c := r.cap.Stats()
	s.Accepted = status.Tally{Batches: c.Batches, Records: c.Records, Bytes: c.RecordBytes}
	gauge := func(name, help string, v int64) status.Counter {
		return status.Counter{Name: name, Help: help, Gauge: true, Value: uint64(max(v, 0))}
	}
	s.Counters = []status.Counter{
		{Name: "writes", Help: "Writes taken in; what the kernel writes counts by what is read at once.", Value: c.Writes},
		{Name: "written_bytes", Help: "Bytes of them.", Value: c.Bytes},
		gauge("uncaptured_bytes", "Bytes in the spool that are not in the queue yet.", r.store.Uncaptured()),
		gauge("unfinished_lines", "Lines whose end was not written yet.", c.Pending),
		gauge("unfinished_line_bytes", "Bytes of them.", c.PendingBytes),
		gauge("longest_hold_milliseconds", "The longest, since the start, that programs which append were held at a time near max_bytes.", time.Duration(r.longestHold.Load()).Milliseconds()),
		{Name: "sealed_bytes", Help: "Bytes of the batches, encoded and compressed.", Value: c.BatchBytes},
		{Name: "hole_bytes", Help: "Bytes of files that nobody wrote, skipped.", Value: c.HoleBytes},
		{Name: "overwritten_bytes", Help: "Bytes written over captured ones.", Value: c.OverwriteBytes},
		{Name: "long_lines", Help: "Lines that travelled in pieces.", Value: c.LongLines},
		{Name: "unterminated_lines", Help: "Lines that ended without a line end.", Value: c.Unterminated},
		{Name: "recovered_bytes", Help: "Bytes whose writer and time were lost.", Value: c.Recovered},
		{Name: "possible_double_bytes", Help: "Bytes captured again after a repair of the queue.", Value: c.PossibleDoubles},
		{Name: "lost_unfinished_line_bytes", Help: "Bytes of unfinished lines that a repair of the queue could not read.", Value: c.LostPending},
	}
	slow := int64(0)
	if r.serving.Load() {
		slow = r.srv.n.slowFiles.Load()
	}
	s.Counters = append(s.Counters, gauge("daemon_served_files", "Files that programs append to through the daemon, since they were opened for reading and writing or with O_DIRECT first: until all have closed them.", slow))
	s.Counters = append(s.Counters, status.Counter{
		Name: "mapped_store_bytes", Help: "Bytes at most that programs stored through shared mappings over captured ones, not transferred.", Value: r.store.Strays(),
	})
	under := r.under.Load().Stats()
	s.Counters = append(s.Counters,
		status.Counter{Name: "offline_bytes", Help: "Bytes of files that were written while nothing was mounted, and of ftfuse send.", Value: c.Offline},
		status.Counter{Name: "offline_removed_files", Help: "Files that were written while nothing was mounted, taken in and removed.", Value: under.Removed},
		gauge("offline_open_files", "Such files that are taken in and that programs still have open for writing.", under.Open))
	s.Counters = append(s.Counters, ruleCounters(c.Rules)...)
	r.plugins.Report(&s)
	r.reportOutputs(&s)
	return s
}

// ruleCounters is what each rule kept back or changed, as far as it did.
func ruleCounters(rules []capture.RuleStats) (all []status.Counter) {
	for i := range rules {
		r := &rules[i]
		add := func(name, help string, v, shown uint64) {
			if shown > 0 {
				all = append(all, status.Counter{Name: name, Help: help, Rule: r.Path, Value: v})
			}
		}
		add("untransferred_writes", "Writes that a rule with transfer = false kept back.", r.SkippedWrites, r.SkippedWrites)
		add("untransferred_bytes", "Bytes of them.", r.SkippedBytes, r.SkippedWrites)
		add("denied_lines", "Lines that a rule's deny dropped.", r.DeniedLines, r.DeniedLines)
		add("denied_bytes", "Bytes of them.", r.DeniedBytes, r.DeniedLines)
		add("unmatched_lines", "Lines that matched nothing of a rule with default = deny.", r.UnmatchedLines, r.UnmatchedLines)
		add("unmatched_bytes", "Bytes of them.", r.UnmatchedBytes, r.UnmatchedLines)
		add("replaced_lines", "Lines that a rule's replace changed.", r.ReplacedLines, r.ReplacedLines)
		add("overgrown_lines", "Those of them that would have become too long: their matches were taken out instead.", r.OvergrownLines, r.OvergrownLines)
	}
	return all
}
