package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"testing"

	"ftfuse/bench/rig"
)

// roleStatus is what these tests read of `ftfuse status --json`.
type roleStatus struct {
	Role    string `json:"role"`
	Host    string `json:"host"`
	Error   string `json:"error"`
	Serving bool   `json:"serving"`
	Queue   struct {
		Bytes    int64 `json:"bytes"`
		MaxBytes int64 `json:"max_bytes"`
		Cursors  []struct {
			Name    string `json:"name"`
			Backlog struct {
				Batches, Records, Bytes uint64
			} `json:"backlog"`
			Age float64 `json:"oldest_age_seconds"`
		} `json:"cursors"`
		Lanes  int   `json:"delivered_lanes"`
		Ranges int   `json:"delivered_ranges"`
		Stored int64 `json:"delivered_bytes"`
	} `json:"queue"`
	Reload  *reloadStatus `json:"reload"`
	Forward []struct {
		Name         string        `json:"name"`
		Mode         string        `json:"mode"`
		Failovers    uint64        `json:"failovers"`
		Failbacks    uint64        `json:"failbacks"`
		Resent       []laneRanges  `json:"resent_ranges"`
		Destinations []destination `json:"destinations"`
	} `json:"forward"`
	Peers *struct {
		Denied     uint64 `json:"denied"`
		TurnedAway uint64 `json:"turned_away"`
		Failed     uint64 `json:"failed"`
	} `json:"peers"`
	Duplicates uint64       `json:"duplicates"`
	Relabelled uint64       `json:"relabelled_batches"`
	Resent     []laneRanges `json:"resent_ranges"`
	Dropped    []struct {
		Reason  string `json:"reason"`
		Records uint64 `json:"records"`
	} `json:"dropped"`
}

// reloadStatus is what became of a reload.
type reloadStatus struct {
	Time         string   `json:"time"`
	Refused      []string `json:"refused"`
	Changed      []string `json:"changed"`
	NeedsRestart []string `json:"needs_restart"`
}

type destination struct {
	Address  string `json:"address"`
	Primary  bool   `json:"primary"`
	State    string `json:"state"`
	Flows    int    `json:"flows"`
	InFlight int    `json:"in_flight_batches"`

	SentBytes int64 `json:"sent_bytes"`
}

// laneRanges are batches of one lane, as status names them.
type laneRanges struct {
	Lane   string      `json:"lane"`
	Ranges [][2]uint64 `json:"ranges"`
}

// backlog is the largest that any cursor of the queue has, in bytes that programs wrote.
func (r *roleStatus) backlog() (most int64) {
	for _, c := range r.Queue.Cursors {
		most = max(most, int64(c.Backlog.Bytes))
	}
	return most
}

// statusOf asks a host's role with the command that operators use.
func statusOf(t *testing.T, h *rig.Host) *roleStatus {
	t.Helper()
	r, err := askStatus(t.Context(), h.File())
	must(t, err)
	return r
}

// askStatus asks the one role of a configuration file.
func askStatus(ctx context.Context, file string) (*roleStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, bin, "status", "-c", file, "--json").Output()
	var all struct {
		Roles []*roleStatus `json:"roles"`
	}
	if bad := json.Unmarshal(out, &all); bad != nil {
		return nil, fmt.Errorf("ftfuse status of %s: %w (%w): %s", file, bad, err, out)
	}
	if len(all.Roles) != 1 || all.Roles[0].Error != "" || err != nil {
		return nil, fmt.Errorf("ftfuse status of %s: %d roles (%w): %s", file, len(all.Roles), err, out)
	}
	return all.Roles[0], nil
}

// atRest waits until the receiver has nothing left to do for what came: a checkpoint is behind
// all of it. (A line can be read in its file before the receiver has seen that its file still
// has a name.)
func atRest(t *testing.T, p *rig.Pair) {
	t.Helper()
	eventually(t, patience, func() error {
		r, err := askStatus(t.Context(), p.ReceiveConfig())
		if err != nil {
			return err
		}
		for _, c := range r.Queue.Cursors {
			if c.Backlog.Batches > 0 {
				return fmt.Errorf("%s has %d batches left", c.Name, c.Backlog.Batches)
			}
		}
		return nil
	})
}
