package status

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// Text writes r for people. Nothing in it can be taken for a terminal's control
// sequences, whatever peers call themselves.
func Text(w io.Writer, r *Role) error {
	t := &text{r: r}
	t.head()
	t.reload()
	t.queue()
	for i := range r.Forward {
		t.group(&r.Forward[i])
	}
	t.peers()
	t.counts()
	for _, s := range r.Trouble {
		t.line("  look: %s", s)
	}
	_, err := io.WriteString(w, t.b.String())
	return err
}

// text builds the form for people.
type text struct {
	r *Role
	b strings.Builder
}

// line writes one line: what stands in args cannot end it.
func (t *text) line(format string, args ...any) { t.b.WriteString(cells(format, args...) + "\n") }

// cells formats one line or a row of cells: nothing in args can end a line or a cell.
func cells(format string, args ...any) string {
	for i, a := range args {
		if s, ok := a.(string); ok {
			args[i] = printable(s)
		}
	}
	return fmt.Sprintf(format, args...)
}

// table writes aligned rows; the cells of a row are parted by tabs.
func (t *text) table(head string, rows []string) {
	if len(rows) == 0 {
		return
	}
	w := tabwriter.NewWriter(&t.b, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "  "+head)
	for _, row := range rows {
		fmt.Fprintln(w, "  "+row)
	}
	w.Flush() // to a strings.Builder, which does not fail
}

func (t *text) head() {
	r := t.r
	state := "serving"
	if why := r.NotReady(); why != "" {
		state = "not ready: " + why
	}
	where := r.Listen
	if r.Point != "" {
		where = r.Point
	}
	how := "plain TCP"
	if r.TLS {
		how = "TLS"
	}
	t.line("%s: %s, %s, %s, up %s", r.Role, where, state, how, age(r.Now.Sub(r.Started)))
	t.line("  host %s, node %s, version %s, pid %d", r.Host, r.Node, r.Version, r.PID)
}

func (t *text) reload() {
	r := t.r.Reload
	if r == nil {
		return
	}
	ago := age(t.r.Now.Sub(r.Time))
	if len(r.Refused) > 0 {
		t.line("  reload refused %s ago, the old configuration stays:", ago)
	} else if len(r.Changed) > 0 {
		t.line("  reloaded %s ago: %s", ago, strings.Join(r.Changed, ", "))
	} else {
		t.line("  reloaded %s ago, nothing changed", ago)
	}
	for _, why := range r.Refused {
		t.line("    %s", why)
	}
	for _, key := range r.NeedsRestart {
		t.line("    needs a restart: %s", key)
	}
}

func (t *text) queue() {
	q := &t.r.Queue
	t.line("  queue: %s of %s, %s on disk in %d files", bytes(q.Bytes), bytes(q.MaxBytes), bytes(q.DiskBytes), q.Segments)
	if q.DeliveredLanes > 0 {
		t.line("  delivered set: %d lanes, %d ranges, %s", q.DeliveredLanes, q.DeliveredRanges, bytes(q.DeliveredBytes))
	}
	if q.Quarantined > 0 {
		t.line("  damaged files set aside: %d; `ftfuse queue verify` names them", q.Quarantined)
	}
	var rows []string
	for _, c := range q.Cursors {
		oldest := "-"
		if !c.Oldest.IsZero() {
			oldest = age(t.r.Now.Sub(c.Oldest))
		}
		rows = append(rows, cells("%s\t%d\t%d\t%s\t%s", c.Name, c.Backlog.Batches, c.Backlog.Records, bytes(int64(c.Backlog.Bytes)), oldest))
	}
	t.table("CURSOR\tBATCHES\tRECORDS\tPAYLOAD\tOLDEST", rows)
}

func (t *text) group(g *Group) {
	t.line("  forward %s (%s): the next node has %d batches, the last node has %d of them", g.Name, g.Mode, g.Acked.Batches, g.Final)
	if n := g.AwaitingFinal; n.Batches > 0 {
		t.line("    %d batches (%s) are with the next node and kept until they are final", n.Batches, bytes(int64(n.Bytes)))
	}
	if g.FinalResent > 0 {
		t.line("    %d batches were sent again because they did not become final in time", g.FinalResent)
	}
	if g.Failovers+g.Failbacks+g.Resent > 0 {
		t.line("    failovers %d, failbacks %d, batches sent to a second destination %d", g.Failovers, g.Failbacks, g.Resent)
	}
	if g.Refused > 0 {
		t.line("    %d batches are refused by every destination, and tried again", g.Refused)
	}
	var rows []string
	for i := range g.Destinations {
		rows = append(rows, t.destination(&g.Destinations[i]))
	}
	t.table("DESTINATION\tKIND\tSTATE\tFLOWS\tIN FLIGHT\tLAST ACK\tROUND TRIP\tLAST ERROR", rows)
}

func (t *text) destination(d *Destination) string {
	kind := "secondary"
	if d.Primary {
		kind = "primary"
	}
	state := d.State
	if d.State == StateHoldDown && !d.HoldUntil.IsZero() {
		state += " for " + age(d.HoldUntil.Sub(t.r.Now))
	} else if !d.Since.IsZero() {
		state += " " + age(t.r.Now.Sub(d.Since))
	}
	ack, rtt, failure := "-", "-", "-"
	if !d.LastAck.IsZero() {
		ack = age(t.r.Now.Sub(d.LastAck)) + " ago"
	}
	if d.RTT > 0 {
		rtt = time.Duration(d.RTT * float64(time.Second)).Round(10 * time.Microsecond).String()
	}
	if d.LastError != "" {
		failure = d.LastError
	}
	return cells("%s\t%s\t%s\t%d\t%d (%s of %s)\t%s\t%s\t%s", d.Address, kind, state, d.Flows, d.InFlight, bytes(d.InFlightBytes), bytes(d.Window), ack, rtt, failure)
}

// maxPeers is how many connections the table shows; the document has all.
const maxPeers = 20

func (t *text) peers() {
	p := t.r.Peers
	if p == nil {
		return
	}
	t.line("  peers: %d connected, %d turned away, %d denied, %d failed handshakes", len(p.Connections), p.TurnedAway, p.Denied, p.Failed)
	var rows []string
	for i, c := range p.Connections {
		if i == maxPeers {
			rows = append(rows, cells("and %d more\t\t\t\t\t\t", len(p.Connections)-i))
			break
		}
		last, state := "-", "reading"
		if !c.LastBatch.IsZero() {
			last = age(t.r.Now.Sub(c.LastBatch)) + " ago"
		}
		if c.Blocked {
			state = "held up"
		}
		rows = append(rows, cells("%s\t%s\t%s\t%s\t%d\t%s\t%s", c.Host, c.Role, c.Address, state, c.Batches, bytes(int64(c.Bytes)), last))
	}
	t.table("PEER\tROLE\tADDRESS\tSTATE\tBATCHES\tSEALED\tLAST BATCH", rows)
}

func (t *text) counts() {
	r := t.r
	rows := []string{row("accepted", r.Accepted), row("delivered", r.Delivered)}
	if r.Resent.Batches > 0 {
		rows = append(rows, row("taken, resent", r.Resent))
	}
	for _, l := range r.Dropped {
		rows = append(rows, row("dropped, "+l.Reason, l.Tally))
	}
	for _, l := range r.DroppedElsewhere {
		rows = append(rows, row("dropped elsewhere, "+l.Reason, l.Tally))
	}
	t.table("\tBATCHES\tRECORDS\tPAYLOAD", rows)
	if r.Duplicates > 0 {
		t.line("  duplicates refused: %d batches", r.Duplicates)
	}
	if r.Relabelled > 0 {
		t.line("  sent on under a new id after a conflict: %d batches", r.Relabelled)
	}
	if r.Peers != nil {
		for _, reason := range sortedKeys(r.Peers.Refused) {
			if n := r.Peers.Refused[reason]; n > 0 {
				t.line("  refused, %s: %d batches", reason, n)
			}
		}
	}
	for _, c := range r.Counters {
		if c.Value == 0 {
			continue
		}
		name := strings.ReplaceAll(c.Name, "_", " ")
		if c.Rule != "" {
			name += " (" + c.Rule + ")"
		}
		t.line("  %s: %d", name, c.Value)
	}
}

func row(what string, t Tally) string {
	return cells("%s\t%d\t%d\t%s", what, t.Batches, t.Records, bytes(int64(t.Bytes)))
}

// bytes writes n with three digits and a binary unit.
func bytes(n int64) string {
	if n < 0 {
		n = 0
	}
	v, unit := float64(n), 0
	for v >= 1000 && unit < len(units)-1 {
		v /= 1024
		unit++
	}
	switch {
	case unit == 0:
		return fmt.Sprintf("%d B", n)
	case v < 10:
		return fmt.Sprintf("%.2f %s", v, units[unit])
	case v < 100:
		return fmt.Sprintf("%.1f %s", v, units[unit])
	}
	return fmt.Sprintf("%.0f %s", v, units[unit])
}

var units = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// age writes d as people read it.
func age(d time.Duration) string {
	switch {
	case d < time.Second:
		return max(d, 0).Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// printable puts ? in the place of what a terminal would act on.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func sortedKeys(m map[string]uint64) []string { return slices.Sorted(maps.Keys(m)) }
