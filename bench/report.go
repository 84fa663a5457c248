package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// Report is everything one `ftfuse bench` measured, as it stands in the JSON.
type Report struct {
	Time       time.Time `json:"time"`
	Kernel     string    `json:"kernel"`
	CPUs       int       `json:"cpus"`
	Durability string    `json:"durability"`
	Held       bool      `json:"memory_held"`
	DiskBefore *Disk     `json:"disk_before"`
	DiskAfter  *Disk     `json:"disk_after"`
	Memory     *Memory   `json:"memory"`
	Idle       []Idle    `json:"idle"` // one for each attribution
	Cases      []Case    `json:"cases"`
	Paced      []Paced   `json:"paced"`
}

// Disk is what the disk itself does: 1 MiB written and fdatasync'd at a time, in MB/s.
type Disk struct {
	New    float64 `json:"new_mb_s"`    // into space the file did not have
	Reused float64 `json:"reused_mb_s"` // over what was there
}

// Idle is the pair at rest.
type Idle struct {
	Attribution string     `json:"attribution"`
	Capture     string     `json:"capture"`       // as the mount's ready line says: passthrough or daemon
	Why         string     `json:"why,omitempty"` // no passthrough
	Latency     Latency    `json:"latency"`       // of a line now and then
	Files       int        `json:"open_files"`    // while the CPU time was measured
	CPUMount    float64    `json:"cpu_percent_mount"`
	CPUReceive  float64    `json:"cpu_percent_receive"`
	Mount       rig.Memory `json:"mount"` // holder and worker together
	Receive     rig.Memory `json:"receive"`
}

// Latency is the time from before write(2) until the line stands in the output file.
type Latency struct {
	Lines int     `json:"lines"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"max_ms"`
}

// Paced is the latency of the lines of one program that writes at a steady rate.
type Paced struct {
	Attribution string  `json:"attribution"`
	Rate        int     `json:"lines_s"`
	Half        bool    `json:"half_of_full_speed"`
	Size        int     `json:"size"`
	WriteP99    float64 `json:"write_p99_ms"` // of write(2) itself
	WriteMax    float64 `json:"write_max_ms"`
	Latency
}

// Case is one size, mode and number of writers.
type Case struct {
	Size    int    `json:"size"`
	Mode    string `json:"mode"`
	Writers int    `json:"writers"`

	Open   *Rate `json:"open,omitempty"`
	Write  *Rate `json:"write,omitempty"`
	Relay  *Rate `json:"relay,omitempty"` // attribution open, with a relay between
	Ext4   *Rate `json:"plain_file,omitempty"`
	Null   *Rate `json:"empty_fuse,omitempty"`
	Alone  *Rate `json:"kernel_alone,omitempty"` // passthrough, with every role stopped
	TailNC *Rate `json:"tail_nc,omitempty"`

	Shippers []Shipped `json:"shippers,omitempty"`
}

// Shipped is what another program reached, from a plain file it follows to another one.
type Shipped struct {
	Name string `json:"name"`
	*Rate
}

// by is what the shipper of that name reached, nil if it was not run.
func (c Case) by(name string) *Rate {
	for _, s := range c.Shippers {
		if s.Name == name {
			return s.Rate
		}
	}
	return nil
}

// of is what the mount did on one way, nil if that was not measured.
func (c Case) of(way string) *Rate {
	return map[string]*Rate{AttrOpen: c.Open, AttrWrite: c.Write, wayRelay: c.Relay}[way]
}

// Rate is what one way reached.
type Rate struct {
	Lines    int64   `json:"lines"`
	Bytes    int64   `json:"bytes"`
	Seconds  float64 `json:"seconds"` // until the last byte is in its last file
	Writing  float64 `json:"writing_seconds"`
	Accepted float64 `json:"accepted_lines_s"` // by write(2), until the last writer has closed
	LineS    float64 `json:"lines_s"`          // until the last byte is in its last file
	MBS      float64 `json:"mb_s"`
	CPU      float64 `json:"cpu_s_per_million_lines"` // of the servers, without the writers

	Count   *tally.Count `json:"count,omitempty"`      // nothing comes out of the empty FUSE
	Latency *Latency     `json:"latency,omitempty"`    // of lines of another file beside the load
	Fair    *Latency     `json:"fair,omitempty"`       // of write(2) and fsync(2) of such lines: until they are durable in the source's queue
	Mount   *rig.Memory  `json:"mount_peak,omitempty"` // holder and worker together
	Receive *rig.Memory  `json:"receive_peak,omitempty"`
	Written float64      `json:"disk_bytes_per_byte,omitempty"` // what the roles sent to the disk
	Relay   *rig.Memory  `json:"relay_peak,omitempty"`
	PerGB   float64      `json:"relay_cpu_s_per_gb,omitempty"` // of the relay alone
}

func rate(p tally.Plan, writing, all time.Duration, cpu float64) *Rate {
	lines := float64(p.Writers) * float64(p.Lines)
	return &Rate{
		Lines: int64(lines), Bytes: p.Bytes(), Seconds: all.Seconds(), Writing: writing.Seconds(),
		Accepted: lines / writing.Seconds(), LineS: lines / all.Seconds(),
		MBS: float64(p.Bytes()) / 1e6 / all.Seconds(), CPU: cpu / lines * 1e6,
	}
}

// shipped reports whether any other program was measured.
func (r *Report) shipped() bool {
	return slices.ContainsFunc(r.Cases, func(c Case) bool { return len(c.Shippers) > 0 })
}

// OK reports whether every line of every case came out once; the references are not asked.
func (r *Report) OK() bool {
	for _, c := range r.Cases {
		for _, f := range []*Rate{c.Open, c.Write, c.Relay} {
			if f != nil && (f.Count == nil || !f.Count.OK()) {
				return false
			}
		}
	}
	return true
}

// WriteJSON writes the report as indented JSON.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("write the figures as JSON: %w", err)
	}
	return nil
}

// WriteTable writes the report for a person.
func (r *Report) WriteTable(w io.Writer) error {
	fmt.Fprintf(w, "\nmount -> receive on one machine: %d CPUs, Linux %s, durability %s; writers, both roles and the references share the CPUs\n", r.CPUs, r.Kernel, r.Durability)
	fmt.Fprintf(w, "the disk alone, fdatasync after each MiB: new space %.0f MB/s before, %.0f after; reused space %.0f before, %.0f after\n",
		r.DiskBefore.New, r.DiskAfter.New, r.DiskBefore.Reused, r.DiskAfter.Reused)
	fmt.Fprintf(w, "free memory: %.2f s for a GB when it is first used, %.2f s again%s\n", r.Memory.First, r.Memory.Again,
		map[bool]string{true: "; the host takes it back, so that all figures swing: --hold-memory keeps it"}[!r.Held && r.Memory.First > 4*r.Memory.Again])
	for _, i := range r.Idle {
		fmt.Fprintf(w, "\nattribution %s, capture %s\n  at rest: p50 %.1f ms, p99 %.1f ms (%d lines); %d files open: CPU mount %.2f %% (%s), receive %.2f %%; memory mount %.0f MB (RSS %.0f), receive %.0f MB (RSS %.0f)\n",
			i.Attribution, i.inForce(), i.Latency.P50, i.Latency.P99, i.Latency.Lines, i.Files, i.CPUMount, atMost(i.CPUMount, 1, "%"), i.CPUReceive,
			mb(i.Mount.Anon), mb(i.Mount.RSS), mb(i.Receive.Anon), mb(i.Receive.RSS))
		for _, p := range r.Paced {
			if p.Attribution == i.Attribution {
				fmt.Fprintf(w, "  one program, %d lines/s of %d bytes%s: p50 %.1f ms, p99 %.1f ms (%s), max %.1f ms; write(2) itself p99 %.1f us\n",
					p.Rate, p.Size, map[bool]string{true: ", half of full speed"}[p.Half], p.P50, p.P99, atMost(p.P99, p.goal(), "ms"), p.Max, p.WriteP99*1e3)
			}
		}
	}
	fmt.Fprintln(w)
	if err := r.writeCases(w); err != nil {
		return err
	}
	fmt.Fprintln(w, "\naccepted: lines a second until the last write(2) had returned and the file was closed; arrived: until the last byte stood in the output file, durably queued on all sides. relay: attribution open, with a relay between. kernel alone: FUSE passthrough while all roles are stopped, the most that a writer can reach on a mount.")
	if r.shipped() {
		fmt.Fprintln(w, "fluent-bit, rsyslog, syslog-ng: the same lines appended to a plain file, which one process of the program follows; a second one gets them over TCP and writes a file. Their queues are in memory, and nothing of theirs is synced.")
	}
	fmt.Fprintln(w, "CPU: seconds of all roles for a million lines. MB: peak of anonymous memory (RssAnon), holder and worker together. disk x: bytes all roles sent to the disk for each byte of lines.")
	fmt.Fprintln(w, "fsync: a line written 100 times a second to another file beside the load, until write(2) and fsync(2) had returned, which is when it is durable in the source's queue.")
	fmt.Fprintln(w, "lag: such a line until it stood in its output, behind what the load had written before it.")
	return nil
}

// inForce is how programs' bytes come in, as the mount said.
func (i Idle) inForce() string {
	switch {
	case i.Capture == "":
		return "by the daemon"
	case i.Why != "":
		return i.Capture + " (" + i.Why + ")"
	}
	return i.Capture
}

func (r *Report) writeCases(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "bytes\twrite\twriters\tway\taccepted/s\tarrived/s\tMB/s\tCPU s/M\tfsync p50\tp99 ms\tlag p50\tp99 ms\tMB mount\tMB recv\tdisk x\tlost\tdoubled\tbad\t")
	for _, c := range r.Cases {
		name := fmt.Sprintf("%d\t%s\t%d", c.Size, c.Mode, c.Writers)
		for _, ref := range []struct {
			way  string
			rate *Rate
		}{{"plain file", c.Ext4}, {"empty FUSE", c.Null}, {"kernel alone", c.Alone}, {"tail|nc", c.TailNC}} {
			if f := ref.rate; f != nil {
				fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%.0f\t%.2f\t\t\t\t\t\t\t\t\t\t\t\n", name, ref.way, f.Accepted, f.LineS, f.MBS, f.CPU)
			}
		}
		for _, s := range c.Shippers {
			fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%.0f\t%.2f\t\t\t\t\t\t\t\t%d\t%d\t%d\t\n", name, s.Name, s.Accepted, s.LineS, s.MBS, s.CPU,
				s.Count.Lost, s.Count.Doubled, s.Count.Altered+s.Count.Disorder+s.Count.Partial)
		}
		for _, attr := range []string{AttrWrite, AttrOpen, wayRelay} {
			if f := c.of(attr); f != nil {
				fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%.0f\t%.2f\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f\t%.0f\t%.1f\t%d\t%d\t%d\t\n",
					name, attr, f.Accepted, f.LineS, f.MBS, f.CPU, f.Fair.P50, f.Fair.P99, f.Latency.P50, f.Latency.P99,
					mb(f.Mount.Anon), mb(f.Receive.Anon), f.Written, f.Count.Lost, f.Count.Doubled, f.Count.Altered+f.Count.Disorder+f.Count.Partial)
			}
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	fmt.Fprintln(w, "\nbeside what issues 2 (write), 3 (open) and 4 (relay) ask for:")
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range r.Cases {
		for _, attr := range []string{AttrWrite, AttrOpen, wayRelay} {
			for _, g := range c.goals(attr) {
				fmt.Fprintf(t, "  %d bytes\t%s\t%d writers\t%s\t%s\n", c.Size, c.Mode, c.Writers, attr, g)
			}
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write the goals: %w", err)
	}
	return nil
}

func mb(n int64) float64 { return float64(n) / 1e6 }
