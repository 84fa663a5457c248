package failpoint_test

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"ftfuse/internal/failpoint"
)

var fp = failpoint.New("test/point")

func TestMain(m *testing.M) {
	if os.Getenv("FAILPOINT_CHILD") == "1" {
		_ = fp.Inject()
		if err := fp.Inject(); err == nil {
			os.Exit(3)
		}
		os.Exit(4)
	}
	os.Exit(m.Run())
}

func TestErrorActsOnTheNamedHitOnly(t *testing.T) {
	if err := fp.Inject(); err != nil {
		t.Fatalf("nothing is armed, got %v", err)
	}
	if err := failpoint.Set("test/point", "error@2"); err != nil {
		t.Fatal(err)
	}
	defer failpoint.Clear("test/point")
	var got []bool
	for range 3 {
		err := fp.Inject()
		if err != nil && !errors.Is(err, failpoint.ErrInjected) {
			t.Fatal(err)
		}
		got = append(got, err != nil)
	}
	if !slices.Equal(got, []bool{false, true, false}) {
		t.Fatalf("hits failed as %v, want only the second", got)
	}
	failpoint.Clear("test/point")
	if err := failpoint.Inject("test/point"); err != nil {
		t.Fatalf("after Clear: %v", err)
	}
}

func TestPauseWaitsForClear(t *testing.T) {
	if err := failpoint.Set("test/point", "pause"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- fp.Inject() }()
	select {
	case <-done:
		t.Fatal("it did not pause")
	default:
	}
	failpoint.Clear("test/point")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestUnknownActionIsRefused(t *testing.T) {
	for _, act := range []string{"", "explode", "kill@0", "error@x"} {
		if err := failpoint.Set("test/point", act); !errors.Is(err, failpoint.ErrAction) {
			t.Errorf("Set(%q) = %v, want ErrAction", act, err)
		}
	}
	if !slices.Contains(failpoint.Names(), "test/point") {
		t.Errorf("Names() = %v", failpoint.Names())
	}
}

func TestEnvironmentKillsAtTheSecondHit(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FAILPOINT_CHILD=1", failpoint.Env+"=test/point=kill@2;other/one=error")
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("child: %v, want a death by SIGKILL", err)
	}
	if ws := exit.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("child ended with %v, want SIGKILL", err)
	}
}
