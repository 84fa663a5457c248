package plugin

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"ftfuse/internal/status"
)

// tally counts units.
type tally struct{ batches, records, bytes atomic.Uint64 }

func (t *tally) add(u *unit) {
	if u.seq != 0 {
		t.batches.Add(1)
	}
	t.records.Add(u.records)
	t.bytes.Add(uint64(u.bytes))
}

// counters are what a plugin did since the role started.
type counters struct {
	given, taken               tally
	starts, timeouts, badAcks  atomic.Uint64
	syncErrors                 atomic.Uint64
	held                       atomic.Int64 // bytes, of lines whose end has not come
	split, unreadable, foreign atomic.Uint64
	logLines, logLeftOut       atomic.Uint64
}

// Stats is one plugin at one moment. Counts are since the role started.
type Stats struct {
	Rule, Cursor string
	PID          int       // 0: it does not run
	Since        time.Time // when that began
	Next         time.Time // of the next start, when it does not run
	Why          string    // it does not run
	Killed       time.Time // when it got SIGKILL, which it has not ended by yet; zero: it did not
	Earlier      int       // process of an earlier run that is waited for; 0: none
	Awaited      time.Time // since when
	Waiting      int       // batches offered and not taken
	HeldBytes    int64     // in memory, of lines whose end has not come

	GivenBatches, GivenRecords, GivenBytes uint64 // written to its input, again where it ended before it took them
	TakenBatches, TakenRecords, TakenBytes uint64
	Starts, Timeouts                       uint64
	BadAcks                                uint64 // lines on descriptor 3 that acknowledge nothing
	SyncErrors                             uint64 // syncs of its output file for which the disk had no room: what was printed comes again
	SplitLines                             uint64 // pieces of long lines given as lines of their own
	Unreadable                             uint64 // batches that could not be decoded
	Foreign                                uint64 // records of a host that their batch does not speak for
	LogLines, LogLeftOut                   uint64 // lines on its standard error, and those of them that are not in the log
}

// Stats returns the plugins in the order of the configuration.
func (s *Set) Stats() []Stats {
	var all []Stats
	for _, r := range s.all() {
		c := r.count
		r.mu.Lock()
		st := r.state
		r.mu.Unlock()
		all = append(all, Stats{
			Rule: r.label, Cursor: r.p.Cursor, PID: st.pid, Since: st.since, Next: st.next, Why: st.why, Killed: st.killed, Earlier: st.earlier, Awaited: st.awaited, Waiting: st.waiting, HeldBytes: c.held.Load(),
			GivenBatches: c.given.batches.Load(), GivenRecords: c.given.records.Load(), GivenBytes: c.given.bytes.Load(),
			TakenBatches: c.taken.batches.Load(), TakenRecords: c.taken.records.Load(), TakenBytes: c.taken.bytes.Load(),
			Starts: c.starts.Load(), Timeouts: c.timeouts.Load(), BadAcks: c.badAcks.Load(),
			SyncErrors: c.syncErrors.Load(),
			SplitLines: c.split.Load(), Unreadable: c.unreadable.Load(), Foreign: c.foreign.Load(),
			LogLines: c.logLines.Load(), LogLeftOut: c.logLeftOut.Load(),
		})
	}
	return all
}

// trouble is what an operator should know of the plugin; "": nothing.
func (p *Stats) trouble(now time.Time) string {
	switch {
	case p.PID != 0 && !p.Killed.IsZero() && now.Sub(p.Killed) > endPatience:
		return fmt.Sprintf("the plugin of %q (pid %d) was killed and is still there: it waits for a disk or a server; no other is started before it has ended", p.Rule, p.PID)
	case p.Earlier != 0 && now.Sub(p.Awaited) > endPatience:
		return fmt.Sprintf("the plugin of %q is not started yet: pid %d of an earlier run is waited for", p.Rule, p.Earlier)
	case p.PID == 0 && p.Why != "":
		return fmt.Sprintf("the plugin of %q does not run (%s); its next start is at %s", p.Rule, p.Why, p.Next.UTC().Format(time.DateTime))
	}
	return ""
}

// Report adds what the plugins do to what a role says of itself.
func (s *Set) Report(role *status.Role) {
	all := s.Stats()
	for _, l := range s.remnants() {
		if !slices.ContainsFunc(all, func(p Stats) bool { return p.Earlier == l.pid }) { // else it is waited for again
			role.Trouble = append(role.Trouble, fmt.Sprintf("a process of the plugin of %q (pid %d) was killed and is still there: it waits for a disk or a server; it is waited for no longer", l.plugin, l.pid))
		}
	}
	for _, p := range all {
		add := func(name, help string, v uint64) {
			role.Counters = append(role.Counters, status.Counter{Name: "plugin_" + name, Help: help, Rule: p.Rule, Value: v})
		}
		running := uint64(0)
		if p.PID != 0 {
			running = 1
		}
		if t := p.trouble(time.Now()); t != "" {
			role.Trouble = append(role.Trouble, t)
		}
		role.Counters = append(role.Counters, status.Counter{Name: "plugin_running", Help: "1 while the plugin runs.", Gauge: true, Rule: p.Rule, Value: running})
		role.Counters = append(role.Counters, status.Counter{Name: "plugin_held_bytes", Help: "Memory for long lines whose end has not come.", Gauge: true, Rule: p.Rule, Value: uint64(p.HeldBytes)})
		add("starts", "Times that the plugin was started, or tried to.", p.Starts)
		add("timeouts", "Times that it was killed because it took nothing for plugin_timeout.", p.Timeouts)
		add("given_records", "Records written to its input, again where it ended before it took them.", p.GivenRecords)
		add("given_bytes", "Bytes of them, as they were given.", p.GivenBytes)
		add("taken_records", "Records that it has taken.", p.TakenRecords)
		add("taken_bytes", "Bytes of them, as they were given.", p.TakenBytes)
		add("sync_errors", "Times that its output file could not be synced for want of room: what it had printed was given again.", p.SyncErrors)
		add("bad_acks", "Lines on its descriptor 3 that acknowledge nothing.", p.BadAcks)
		add("split_pieces", "Pieces of long lines that were given as lines of their own.", p.SplitLines)
		add("unreadable_batches", "Batches that could not be decoded, and records of a host that their batch does not speak for.", p.Unreadable+p.Foreign)
		add("log_lines", "Lines on its standard error.", p.LogLines)
		add("log_lines_left_out", "Of those, not put into the log.", p.LogLeftOut)
	}
}
