package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/systemd"
)

const testEnv = "FTFUSE_DAEMON_TEST" // what this binary does as a program

func TestMain(m *testing.M) {
	switch os.Getenv(testEnv) {
	case "":
		os.Exit(m.Run())
	case "serves":
		_ = systemd.Notify("FDSTOREREMOVE=1") // of no interest to who starts it
		if systemd.Ready() != nil || os.Getenv(systemd.Env) != "" || systemd.Stopping() != nil {
			os.Exit(3)
		}
	case "fails":
		_ = systemd.Failed(errors.New("no disk"))
	case "fails and hangs":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		_ = systemd.Failed(errors.New("no disk"))
		_ = os.WriteFile(os.Args[1], nil, 0o600)
		select {
		case <-c:
			_ = os.WriteFile(os.Args[2], nil, 0o600)
		case <-time.After(time.Minute): // nobody cares: the test has failed
		}
	case "dies":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "hangs":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		<-c
		_ = os.WriteFile(os.Args[1], nil, 0o600)
	}
	os.Exit(0)
}

func program(what string, args ...string) Program {
	return Program{Path: "/proc/self/exe", Args: append([]string{"x"}, args...), Env: []string{testEnv + "=" + what}}
}

func TestStartWaitsForTheWordThatDecides(t *testing.T) {
	if err := Start(t.Context(), program("serves")); err != nil {
		t.Error(err)
	}
	for what, says := range map[string]string{"fails": "no disk", "dies": "signal: killed", "other": "exit status 0"} {
		if err := Start(t.Context(), program(what)); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := Start(t.Context(), Program{Path: "/nowhere"}); !errors.Is(err, ErrStart) {
		t.Errorf("a program that is not there: %v", err)
	}
}

func TestWhoIsInterruptedStopsWhatItStarted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // the program asks for signals meanwhile
	defer cancel()
	file := filepath.Join(t.TempDir(), "told")
	if err := Start(ctx, program("hangs", file)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	appears(t, file)
}

// TestAProgramThatFailedAndDoesNotEndHoldsNobodyUp: who waited for its end did so for ever, and
// an interrupt did not end that.
func TestAProgramThatFailedAndDoesNotEndHoldsNobodyUp(t *testing.T) {
	dir := t.TempDir()
	said, told := filepath.Join(dir, "said"), filepath.Join(dir, "told")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- Start(ctx, program("fails and hangs", said, told)) }()
	appears(t, said)
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) || errors.Is(err, ErrFailed) && !strings.Contains(err.Error(), "no disk") { // its word may not have been heard yet
			t.Errorf("%v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Start waits on")
	}
	appears(t, told)
}

// appears waits for a file.
func appears(t *testing.T, file string) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); ; <-time.After(time.Millisecond) {
		if _, err := os.Stat(file); err == nil {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("there is no %s: it was not told to stop", filepath.Base(file))
		}
	}
}

func TestLevelsAreRead(t *testing.T) {
	var text, json bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Warn("x", "level", "y")
	slog.New(slog.NewJSONHandler(&json, nil)).Error("x")
	for line, want := range map[string]string{text.String(): "WARN", json.String(): "ERROR", "goroutine 1 [running]:": ""} {
		if got := levelOf(line); got != want {
			t.Errorf("%q is %q, want %q", line, got, want)
		}
	}
}
