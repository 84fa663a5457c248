package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"ftfuse/config"
	"ftfuse/queue"
)

func queueCommand() *cli.Command {
	flags := []cli.Flag{configFlag(), roleFlag()}
	return &cli.Command{
		Name:  "queue",
		Usage: "look into the durable queues of stopped roles, and mend them",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list the segment files and what can be read of them", Flags: flags, Action: eachQueue(queueLs)},
			{Name: "verify", Usage: "read everything and name what is damaged (exit 0 whole, 1 damaged)", Flags: flags, Action: eachQueue(queueVerify)},
			{Name: "repair", Usage: "make a queue whose newest state is damaged usable again", Flags: flags, Action: queueRepair},
			{Name: "cat", Usage: "print what is queued (arrives with a later version)", Flags: flags, Action: arrivesLater("`ftfuse queue ls` tells how much is queued")},
			{Name: "export", Usage: "write what is queued to a file (arrives with a later version)", Flags: flags, Action: arrivesLater("copy the folder <state_dir>/<role>/queue of the stopped role")},
			{Name: "import", Usage: "queue what export wrote (arrives with a later version)", Flags: flags, Action: arrivesLater("copy the folder <state_dir>/<role>/queue of the stopped role")},
		},
	}
}

func roleFlag() cli.Flag {
	return &cli.StringFlag{Name: "role", Usage: "only `ROLE` (mount, relay or receive)"}
}

// errDamaged makes verify exit with 1; the report has been printed.
var errDamaged = errors.New("a queue is damaged")

// errNoQueue is a role that has not run on this host.
var errNoQueue = errors.New("there is no queue yet: the role has not run with this state_dir")

// chosenRoles returns the roles that --role names, or all that the file describes.
func chosenRoles(c *cli.Context) (*config.Config, []config.Role, error) {
	name := config.Role(c.String("role"))
	if name != "" && !slices.Contains(config.Roles(), name) {
		return nil, nil, usagef("%s: --role %q; write mount, relay or receive", commandName(c), name)
	}
	cfg, err := config.Load(configFile(c))
	if err != nil {
		return nil, nil, err
	}
	switch {
	case name != "" && cfg.Configured(name):
		return cfg, []config.Role{name}, nil
	case name == "" && len(cfg.Roles()) > 0:
		return cfg, cfg.Roles(), nil
	case name == "":
		name = config.RoleMount
	}
	return nil, nil, cfg.CheckRole(name) // says that it is missing
}

// eachQueue calls f for the queue of each chosen role.
func eachQueue(f func(w io.Writer, role config.Role, r queue.Report) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		cfg, roles, err := chosenRoles(c)
		if err != nil {
			return err
		}
		var errs []error
		for _, role := range roles {
			report, err := inspect(cfg.QueueDir(role), queue.Verify)
			if errors.Is(err, errNoQueue) && c.String("role") == "" {
				fmt.Fprintf(c.App.Writer, "%s: %s: %v\n", role, cfg.QueueDir(role), err)
				continue
			}
			if err == nil {
				err = f(c.App.Writer, role, report)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %s: %w", role, cfg.QueueDir(role), err))
			}
		}
		return errors.Join(errs...)
	}
}

// inspect calls f for a queue that exists.
func inspect(dir string, f func(string) (queue.Report, error)) (queue.Report, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return queue.Report{}, errNoQueue
	} else if err != nil {
		return queue.Report{}, err
	}
	report, err := f(dir)
	if errors.Is(err, queue.ErrLocked) {
		err = fmt.Errorf("%w; stop the role first", err)
	}
	return report, err
}

func queueLs(w io.Writer, role config.Role, r queue.Report) error {
	fmt.Fprintf(w, "%s: %s, node %s\n", role, r.Dir, r.Node)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "  SEGMENT\tBATCHES\tRECORDS\tPAYLOAD\tBYTES\tSTATE")
	for _, s := range r.Segments {
		fmt.Fprintf(t, "  %s\t%d\t%d\t%d\t%d\t%s\n", filepath.Base(s.File), s.Good.Batches, s.Good.Records, s.Good.Payload, s.Good.Bytes, segmentState(r, s))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write the list: %w", err)
	}
	return nil
}

func segmentState(r queue.Report, s queue.SegmentReport) string {
	var words []string
	if len(s.Bad) > 0 {
		words = append(words, fmt.Sprintf("%d damaged places", len(s.Bad)))
	}
	if s.Newest {
		words = append(words, "newest")
		if r.State != nil {
			words = append(words, "state damaged")
		}
	}
	if len(words) == 0 {
		return "whole"
	}
	return strings.Join(words, ", ")
}

func queueVerify(w io.Writer, role config.Role, r queue.Report) error {
	var all queue.Tally
	for _, s := range r.Segments {
		all.Batches += s.Good.Batches
		all.Records += s.Good.Records
		all.Payload += s.Good.Payload
	}
	word := "whole"
	if r.Damaged() {
		word = "damaged"
	}
	fmt.Fprintf(w, "%s: %s: %s: %d segments with %d readable batches, %d records, %d bytes of payload\n", role, r.Dir, word, len(r.Segments), all.Batches, all.Records, all.Payload)
	for _, s := range r.Segments {
		for _, b := range s.Bad {
			fmt.Fprintf(w, "  %s: %s\n", s.File, damage(b))
		}
	}
	if !r.Damaged() {
		return nil
	}
	if r.State != nil {
		fmt.Fprintf(w, "  the newest state: %v\n", r.State)
		return fmt.Errorf("%w: the role cannot start; `ftfuse queue repair --role %s` goes on from older state", errDamaged, role)
	}
	return fmt.Errorf("%w: %d batches are lost; the role starts, steps over them and counts them", errDamaged, r.Lost())
}

func damage(b queue.DamagedItem) string {
	var text strings.Builder
	switch {
	case b.ID.N != 0:
		fmt.Fprintf(&text, "batch %s (entry %d): ", b.ID, b.Seq)
	case b.Seq != 0:
		fmt.Fprintf(&text, "entry %d: ", b.Seq)
	}
	fmt.Fprint(&text, b.Err)
	if b.Needed {
		text.WriteString("; it is lost")
	} else if b.Seq != 0 {
		text.WriteString("; it was passed on already")
	}
	return text.String()
}

func queueRepair(c *cli.Context) error {
	cfg, roles, err := chosenRoles(c)
	if err != nil {
		return err
	}
	if len(roles) > 1 {
		return usagef("%s: %s describes several roles; name one with --role", commandName(c), cfg.File)
	}
	role, dir := roles[0], cfg.QueueDir(roles[0])
	r, err := inspect(dir, queue.Repair)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", role, dir, err)
	}
	w := c.App.Writer
	if r.Repair == nil {
		fmt.Fprintf(w, "%s: %s: the newest state is whole, nothing to repair\n", role, dir)
		if n := r.Lost(); n > 0 {
			fmt.Fprintf(w, "  %d batches are lost; the role starts, steps over them and counts them\n", n)
		}
		return nil
	}
	fmt.Fprintf(w, "%s: %s: repaired, the role can start\n", role, dir)
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
