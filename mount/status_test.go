package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ftfuse/config"
	"ftfuse/internal/control"
	"ftfuse/internal/status"
)

func (r *rig) status() (status.Role, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, _, err := control.Status(ctx, filepath.Join(r.dir, "state", "mount"))
	return s, err
}

// TestAnAddressThatIsTakenStopsNoTakeover, but a start.
func TestAnAddressThatIsTakenStopsNoTakeover(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, taken := range []bool{false, true} {
		r := routeRun(t, t.TempDir(), routed([]string{"a"}))
		r.log = slog.New(slog.DiscardHandler)
		r.m.HTTP.Listen = l.Addr().String()
		if r.taken.fd = -1; taken {
			r.taken.fd = 3
		}
		err := r.openControl()
		if (err == nil) != taken {
			t.Errorf("taken over %v: %v", taken, err)
		}
		if taken {
			answer, err := control.Client(r.cfg.RoleDir(config.RoleMount)).Get("http://role/queue/ls")
			if err != nil || answer.StatusCode != http.StatusOK {
				t.Errorf("the socket answers %v, %v", answer, err)
			} else {
				answer.Body.Close()
			}
		}
		if err := r.ctl.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestStatusOfAMount: what was written stands in it; after a stop nobody answers.
func TestStatusOfAMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts by itself")
	}
	r := newRigStopped(t, "[[mount.rule]]\npath = \"no/**\"\ntransfer = false\nattribution = \"write\"\n"+perWrite)
	r.start()
	if err := os.Mkdir(r.path("no"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, kept := appender(t, r.path("a")), appender(t, r.path("no/b"))
	for i := range 10 {
		put(t, f, fmt.Sprintf("line %d\n", i))
		put(t, kept, "never\n")
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := kept.Sync(); err != nil {
		t.Fatal(err)
	}
	s, err := r.status()
	if err != nil {
		t.Fatal(err)
	}
	if !s.Serving || s.Role != "mount" || s.Host != "src-1" || s.Point != r.point || s.Node == "" || s.TLS {
		t.Errorf("%+v", s)
	}
	if s.Accepted.Records != 10 || s.Accepted.Bytes != 70 || s.Accepted.Batches == 0 || s.Delivered.Batches != 0 {
		t.Errorf("accepted %+v, delivered %+v", s.Accepted, s.Delivered)
	}
	if len(s.Queue.Cursors) != 2 || s.Queue.Cursors[1].Name != outputCursor || s.Queue.Cursors[0].Name != testCursor || s.Queue.Cursors[0].Backlog != s.Accepted {
		t.Errorf("cursors %+v, accepted %+v", s.Queue.Cursors, s.Accepted)
	}
	if len(s.Forward) != 1 || s.Forward[0].Name != "default" || len(s.Forward[0].Destinations) != 1 || s.Forward[0].Destinations[0].Address != "127.0.0.1:1" {
		t.Errorf("forward %+v", s.Forward)
	}
	want := map[string]uint64{"writes": 10, "written_bytes": 70, "untransferred_writes no/**": 10, "untransferred_bytes no/**": 60}
	for _, c := range s.Counters {
		name := c.Name
		if c.Rule != "" {
			name += " " + c.Rule
		}
		if n, ok := want[name]; ok && n != c.Value {
			t.Errorf("%s is %d, want %d", name, c.Value, n)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("not among the counters: %v", want)
	}
	r.stop()
	if _, err := r.status(); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("after a stop: %v", err)
	}
}
