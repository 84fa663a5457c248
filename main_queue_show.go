package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"ftfuse/internal/control"
	"ftfuse/internal/queuetool"
	"ftfuse/queue"
)

func queueLs(c *cli.Context, q roleQueue) error {
	l, err := q.remote().List(c.Context)
	state := "running"
	if errors.Is(err, control.ErrNotRunning) {
		state = "stopped"
		err = q.view(func(v *queue.View) error {
			l, err = queuetool.List(c.Context, v)
			return err
		})
	}
	if err != nil {
		return err
	}
	w := c.App.Writer
	if c.Bool("json") {
		return writeJSON(w, struct {
			Role string `json:"role"`
			*queuetool.Listing
		}{string(q.role), l})
	}
	fmt.Fprintf(w, "%s: %s, node %s, %s\n", q.role, q.dir, l.Node, state)
	return showListing(w, l)
}

func writeJSON(w io.Writer, v any) error {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

func showListing(w io.Writer, l *queuetool.Listing) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(first string, p *queuetool.Part, last ...string) {
		fmt.Fprintf(t, "  %s\t%d\t%d\t%d\t%s\t%s\n", first, p.Batches, p.Records, p.Payload, age(l.Time, p.Oldest), strings.Join(last, "\t"))
	}
	fmt.Fprintln(t, "  CURSOR\tBATCHES\tRECORDS\tPAYLOAD\tOLDEST\t")
	for i := range l.Cursors {
		row(queuetool.Name(l.Cursors[i].Name), &l.Cursors[i])
	}
	if len(l.Lanes) > 0 {
		fmt.Fprintln(t, "  SEGMENT\tBATCHES\tRECORDS\tPAYLOAD\tOLDEST\t")
		for i := range l.Segments {
			row(l.Segments[i].Name, &l.Segments[i])
		}
		fmt.Fprintln(t, "  LANE\tBATCHES\tRECORDS\tPAYLOAD\tOLDEST\tHOST\tNEEDED BY\tNUMBERS")
		for i := range l.Lanes {
			p := &l.Lanes[i]
			row(p.Name, p, queuetool.Name(p.Host), strings.Join(p.NeedBy, ","), short(p.Numbers))
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write the list: %w", err)
	}
	if len(l.Lanes) == 0 && l.Unreadable == 0 {
		fmt.Fprintln(w, "  nothing is queued")
	}
	for _, x := range l.Lost {
		fmt.Fprintf(w, "  lost since the queue was made, %s: %d batches, %d records, %d bytes of payload\n", x.Reason, x.Batches, x.Records, x.Payload)
	}
	if l.Unreadable > 0 {
		return fmt.Errorf("%w: %d batches cannot be read; `ftfuse queue verify` names them", errDamaged, l.Unreadable)
	}
	return nil
}

// age is how old what was sealed at t is, by the clock of whoever sealed it.
func age(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return now.Sub(t).Truncate(time.Second).String()
}

// short is a text of ranges for people; JSON has all of it.
func short(ranges string) string {
	const most = 60
	if len(ranges) <= most {
		return ranges
	}
	cut := strings.LastIndexByte(ranges[:most], ',')
	return ranges[:max(cut, 0)] + ",… " + strconv.Itoa(strings.Count(ranges, ",")+1) + " ranges"
}

func queueVerify(c *cli.Context, q roleQueue) error {
	v, err := q.remote().Verify(c.Context)
	if errors.Is(err, control.ErrNotRunning) {
		var r queue.Report
		if r, err = queue.Verify(q.dir); err == nil {
			v = queuetool.NewVerified(r)
		}
	}
	if err != nil {
		return inUse(err)
	}
	if c.Bool("json") {
		err = writeJSON(c.App.Writer, struct {
			Role string `json:"role"`
			*queuetool.Verified
		}{string(q.role), v})
	} else {
		showVerified(c.App.Writer, q, v)
	}
	switch {
	case err != nil || !v.Damaged:
		return err
	case v.State != "":
		return fmt.Errorf("%w: the role cannot start; `ftfuse queue repair --role %s` goes on from older state", errDamaged, q.role)
	}
	return fmt.Errorf("%w: %d batches are lost; the role steps over them and counts them", errDamaged, v.Lost)
}

func showVerified(w io.Writer, q roleQueue, v *queuetool.Verified) {
	word := "whole"
	if v.Damaged {
		word = "damaged"
	}
	var all queuetool.Segment
	for _, s := range v.Segments {
		all.Batches += s.Batches
		all.Records += s.Records
		all.Payload += s.Payload
	}
	fmt.Fprintf(w, "%s: %s: %s: %d segments with %d readable batches, %d records, %d bytes of payload\n", q.role, q.dir, word, len(v.Segments), all.Batches, all.Records, all.Payload)
	for _, s := range v.Segments {
		for _, b := range s.Bad {
			fmt.Fprintf(w, "  %s: %s\n", filepath.Join(q.dir, filepath.Base(s.File)), damage(b))
		}
	}
	for _, f := range v.Aside {
		fmt.Fprintf(w, "  %s: set aside: it was damaged, and nothing in it is needed any more\n", f)
	}
	if v.State != "" {
		fmt.Fprintf(w, "  the newest state: %s\n", v.State)
	}
}

func damage(b queuetool.Place) string {
	var text strings.Builder
	switch {
	case b.Batch != "":
		fmt.Fprintf(&text, "batch %s (entry %d): ", b.Batch, b.Seq)
	case b.Seq != 0:
		fmt.Fprintf(&text, "entry %d: ", b.Seq)
	}
	text.WriteString(b.Error)
	if b.Needed {
		text.WriteString("; it is lost")
	} else if b.Seq != 0 {
		text.WriteString("; it was passed on already")
	}
	return text.String()
}

func queueRepair(c *cli.Context, q roleQueue) error {
	r, err := queue.Repair(q.dir)
	if errors.Is(err, queue.ErrLocked) {
		return fmt.Errorf("%w; stop the role first", err)
	} else if err != nil {
		return err
	}
	w := c.App.Writer
	if r.Repair == nil {
		fmt.Fprintf(w, "%s: %s: the newest state is whole, nothing to repair\n", q.role, q.dir)
		if n := r.Lost(); n > 0 {
			fmt.Fprintf(w, "  %d batches are lost; the role starts, steps over them and counts them\n", n)
		}
		return nil
	}
	fmt.Fprintf(w, "%s: %s: repaired, the role can start\n", q.role, q.dir)
	fmt.Fprintf(w, "  goes on from the state in %s as of entry %d; entries were found up to %d\n", r.Repair.StateFrom, r.Repair.StateSeq, r.Repair.NewestSeq)
	if r.Repair.Whole {
		fmt.Fprintln(w, "  the newest commit was found whole: nothing is lost, nothing stands twice")
		return nil
	}
	fmt.Fprintf(w, "  %d batches are lost, %d values of the role's state are older ones; what may stand twice is counted by the role\n", r.Repair.LostCount, len(r.Repair.OldValues))
	for _, id := range r.Repair.Lost {
		fmt.Fprintf(w, "  lost: batch %s\n", id)
	}
	return nil
}
