package receive

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"
)

// wantFile compares a file with what it must hold.
func wantFile(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	if string(got) == want {
		return
	}
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	show := func(s string) string { return fmt.Sprintf("%q", s[max(0, min(i-40, len(s))):min(len(s), i+60)]) }
	t.Errorf("%s: %d bytes, want %d; they differ at %d:\n got  %s\n want %s", path, len(got), len(want), i, show(string(got)), show(want))
}

// testLogger writes to the test's log until the test has ended.
func testLogger(t testing.TB) *slog.Logger {
	w := &logWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.t = nil
	})
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type logWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Logf("%s", bytes.TrimSpace(p))
	}
	return len(p), nil
}

// waitFor waits for a state that nothing announces.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.Now().Add(testLimit)
	for tick := time.NewTicker(time.Millisecond); !ok(); <-tick.C {
		if time.Now().After(limit) {
			t.Fatalf("waiting for %s", what)
		}
	}
}
