package reload

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"ftfuse/config"
)

// fake is a role that notes what it is told.
type fake struct {
	got  []config.Size
	fail error
}

func (f *fake) Reload(_ context.Context, _, next *config.Config) ([]string, error) {
	if f.fail != nil {
		return nil, f.fail
	}
	f.got = append(f.got, next.Receive.Queue.MaxBytes)
	return []string{"the role: more"}, nil
}

func (f *fake) Reopen() error { return f.fail }

const file = "state_dir = \"/var/lib/ftfuse\"\n[receive]\nlisten = \":7401\"\nqueue.max_bytes = \"1GiB\"\n"

func load(text string) func() (*config.Config, error) {
	return func() (*config.Config, error) { return config.Parse("f.toml", []byte(text)) }
}

func start(t *testing.T) (*Handle, *fake, *bytes.Buffer) {
	t.Helper()
	cfg, err := load(file)()
	if err != nil {
		t.Fatal(err)
	}
	log, f := &bytes.Buffer{}, &fake{}
	return New(config.RoleReceive, cfg, slog.New(slog.NewTextHandler(log, nil))), f, log
}

// TestABadFileIsRefusedWhole: the role hears nothing, and the status says line and reason.
func TestABadFileIsRefusedWhole(t *testing.T) {
	h, f, log := start(t)
	h.Serve(f)
	if h.State() != nil {
		t.Error("there was a reload at the start")
	}
	for text, why := range map[string]string{
		strings.Replace(file, "1GiB", "2GiB", 1) + "hots = 1\n": "f.toml:5: ",
		"[receive]\nlisten = 7\n":                               "f.toml:2: ",
	} {
		if _, err := h.Reload(t.Context(), load(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
		if s := h.State(); len(f.got) != 0 || len(s.Refused) == 0 || !strings.HasPrefix(s.Refused[0], why) || s.Time.IsZero() {
			t.Errorf("%q: the role got %v, the status is %+v", text, f.got, s)
		}
		if !strings.Contains(log.String(), why) {
			t.Errorf("%q: the log does not say %q", text, why)
		}
	}
	f.fail = errors.New("a directory is gone")
	if _, err := h.Reload(t.Context(), load(strings.Replace(file, "1GiB", "2GiB", 1))); !errors.Is(err, f.fail) {
		t.Errorf("a role that refuses: %v", err)
	}
	f.fail = nil
	if a, err := h.Reload(t.Context(), load(file)); err != nil || len(a.Changed) > 0 {
		t.Errorf("what was refused counts as in force: %v, %v", a.Changed, err)
	}
}

// TestEachReloadIsComparedWithWhatIsInForce, and what waits for a restart is said every time.
func TestEachReloadIsComparedWithWhatIsInForce(t *testing.T) {
	h, f, _ := start(t)
	h.Serve(f)
	next := strings.Replace(strings.Replace(file, "1GiB", "2GiB", 1), ":7401", ":7402", 1)
	for i, changed := range [][]string{{"receive.queue.max_bytes"}, nil} {
		a, err := h.Reload(t.Context(), load(next))
		if err != nil || !slices.Equal(a.Changed, changed) || len(a.Restart) != 2 || a.Config.Receive.Listen != ":7401" {
			t.Errorf("reload %d: %+v, %v", i, a, err)
		}
		if s := h.State(); !slices.Equal(s.NeedsRestart, a.Restart) || !slices.Equal(s.Changed, changed) || len(s.Refused) > 0 {
			t.Errorf("reload %d: the status is %+v", i, s)
		}
	}
	if !slices.Equal(f.got, []config.Size{2 << 30, 2 << 30}) {
		t.Errorf("the role got %v", f.got)
	}
}

// TestAReloadWaitsForTheRoleToServe, and no longer than the process.
func TestAReloadWaitsForTheRoleToServe(t *testing.T) {
	h, f, _ := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Reload(ctx, load(file)); !errors.Is(err, context.Canceled) {
		t.Errorf("a reload of a role that never served: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := h.Reload(t.Context(), load(strings.Replace(file, "1GiB", "2GiB", 1)))
		done <- err
	}()
	h.Serve(f)
	if err := <-done; err != nil || len(f.got) != 1 {
		t.Errorf("reloaded %v, %v", f.got, err)
	}
}
