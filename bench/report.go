package bench

import (
	"encoding/json"
	"fmt"
	"io"
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
	DiskBefore *Disk     `json:"disk_before"`
	DiskAfter  *Disk     `json:"disk_after"`
	Idle       *Idle     `json:"idle"`
	Cases      []Case    `json:"cases"`
}

// Disk is what the disk itself does: 1 MiB written and fdatasync'd at a time, in MB/s.
type Disk struct {
	New    float64 `json:"new_mb_s"`    // into space the file did not have
	Reused float64 `json:"reused_mb_s"` // over what was there
}

// Idle is the pair at rest.
type Idle struct {
	Latency Latency    `json:"latency"`     // of a line now and then
	CPU     float64    `json:"cpu_percent"` // of both roles with nothing to do
	Mount   rig.Memory `json:"mount"`
	Receive rig.Memory `json:"receive"`
}

// Latency is the time from before write(2) until the line stands in the output file.
type Latency struct {
	Lines int     `json:"lines"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"max_ms"`
}

// Case is one row: one size, mode and number of writers.
type Case struct {
	Size    int    `json:"size"`
	Mode    string `json:"mode"`
	Writers int    `json:"writers"`
	Lines   int64  `json:"lines"`
	Bytes   int64  `json:"bytes"`

	Ftfuse *Rate `json:"ftfuse"`
	Ext4   *Rate `json:"plain_file,omitempty"`
	Null   *Rate `json:"empty_fuse,omitempty"`
	TailNC *Rate `json:"tail_nc,omitempty"`
}

// Rate is what one way reached.
type Rate struct {
	Seconds float64 `json:"seconds"` // until the last byte is in its last file
	Writing float64 `json:"writing_seconds"`
	LineS   float64 `json:"lines_s"`
	MBS     float64 `json:"mb_s"`
	CPU     float64 `json:"cpu_s_per_million_lines"` // of the servers, without the writers

	Count   *tally.Count `json:"count,omitempty"` // nothing comes out of the empty FUSE
	Latency *Latency     `json:"latency,omitempty"`
	Mount   *rig.Memory  `json:"mount_peak,omitempty"`
	Receive *rig.Memory  `json:"receive_peak,omitempty"`
	Written float64      `json:"disk_bytes_per_byte,omitempty"` // what both roles sent to the disk
}

func rate(p tally.Plan, writing, all time.Duration, cpu float64) *Rate {
	lines := float64(p.Writers) * float64(p.Lines)
	return &Rate{
		Seconds: all.Seconds(), Writing: writing.Seconds(),
		LineS: lines / all.Seconds(), MBS: float64(p.Bytes()) / 1e6 / all.Seconds(),
		CPU: cpu / lines * 1e6,
	}
}

// target is what issue 2 ("Speed to reach") asks of a case: a ratio to a reference.
type target struct {
	ratio float64
	of    string
}

func (c Case) target() (target, bool) {
	if c.Writers != 4 {
		return target{}, false
	}
	table := map[string]map[int]float64{
		ModeBlock: {10: 0.2, 128: 0.33, 1024: 0.33, 4096: 0.33},
		ModeLine:  {10: 0.8, 128: 0.75, 1024: 0.7, 4096: 0.6},
	}
	of := map[string]string{ModeBlock: "tail|nc", ModeLine: "empty FUSE"}
	ratio, ok := table[c.Mode][c.Size]
	return target{ratio, of[c.Mode]}, ok
}

// verdict is the last column of the table.
func (c Case) verdict() string {
	t, ok := c.target()
	if !ok {
		return ""
	}
	ref := c.Null
	if t.of == "tail|nc" {
		ref = c.TailNC
	}
	if ref == nil {
		return fmt.Sprintf("want %.2f of %s (not run)", t.ratio, t.of)
	}
	got := c.Ftfuse.LineS / ref.LineS
	word := "reached"
	if got < t.ratio {
		word = "MISSED"
	}
	return fmt.Sprintf("%.2f of %s, want %.2f: %s", got, t.of, t.ratio, word)
}

// OK reports whether every line of every case came out once.
func (r *Report) OK() bool {
	for _, c := range r.Cases {
		if c.Ftfuse == nil || c.Ftfuse.Count == nil || !c.Ftfuse.Count.OK() {
			return false
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
	if i := r.Idle; i != nil {
		fmt.Fprintf(w, "at rest: write to output p50 %.1f ms, p99 %.1f ms (%d lines); %.1f %% CPU; memory mount %.0f MB (RSS %.0f), receive %.0f MB (RSS %.0f)\n",
			i.Latency.P50, i.Latency.P99, i.Latency.Lines, i.CPU, mb(i.Mount.Anon), mb(i.Mount.RSS), mb(i.Receive.Anon), mb(i.Receive.RSS))
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "bytes\twrite\twriters\tlines/s\tMB/s\tCPU s/M\tp50 ms\tp99 ms\tMB mount\tMB recv\tdisk x\tlost\tdoubled\tbad\tplain file\tempty FUSE\ttail|nc\t  target\t")
	for _, c := range r.Cases {
		f := c.Ftfuse
		fmt.Fprintf(t, "%d\t%s\t%d\t%.0f\t%.0f\t%.2f\t%.1f\t%.1f\t%.0f\t%.0f\t%.1f\t%d\t%d\t%d\t%s\t%s\t%s\t  %s\t\n",
			c.Size, c.Mode, c.Writers, f.LineS, f.MBS, f.CPU, f.Latency.P50, f.Latency.P99,
			mb(f.Mount.Anon), mb(f.Receive.Anon), f.Written, f.Count.Lost, f.Count.Doubled, f.Count.Altered+f.Count.Disorder+f.Count.Partial,
			perSecond(c.Ext4), perSecond(c.Null), perSecond(c.TailNC), c.verdict())
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	fmt.Fprintln(w, "\nlines/s: until the last byte stood in the output file. CPU: seconds of both roles for a million lines. MB: peak of anonymous memory (RssAnon).")
	fmt.Fprintln(w, "p50, p99: a line written 100 times a second beside the load, until it stood in its output. disk x: bytes both roles sent to the disk for each byte of lines.")
	return nil
}

func perSecond(r *Rate) string {
	if r == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f", r.LineS)
}

func mb(n int64) float64 { return float64(n) / 1e6 }
