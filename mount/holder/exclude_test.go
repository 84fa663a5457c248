package holder

import (
	"errors"
	"log/slog"
	"testing"
	"time"
)

// A mount did not start as long as an idle `ftfuse send` had its queue.
func TestAMountHasASenderLeave(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	for range 2 { // the second time over what the first left
		e, err := Exclude(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Exclude(dir); !errors.Is(err, ErrRunning) {
			t.Errorf("excluded twice: %v", err)
		}
		select {
		case <-e.Wanted():
			t.Error("wanted by nobody")
		default:
		}
		done := make(chan error, 2)
		go func() {
			f, err := lockForMount(dir, log)
			if err == nil {
				err = f.Close()
			}
			done <- err
		}()
		go func() { done <- AwaitSender(dir, log) }() // a mount without a holder
		<-e.Wanted()
		if len(done) > 0 {
			t.Error("a mount did not wait")
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	f, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if left, err := awaitSender(dir, time.Now().Add(time.Minute), log); left || err != nil {
		t.Errorf("a sender has left where none was: %v", err)
	}
	if _, err := lockForMount(dir, log); !errors.Is(err, ErrRunning) {
		t.Errorf("locked what a mount has: %v", err)
	}
}

func TestASenderThatDoesNotLeaveIsNamed(t *testing.T) {
	dir := t.TempDir()
	e, err := Exclude(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := awaitSender(dir, time.Now().Add(10*time.Millisecond), slog.New(slog.DiscardHandler)); !errors.Is(err, ErrRunning) {
		t.Errorf("got %v, want that it runs", err)
	}
}
