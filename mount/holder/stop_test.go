package holder

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Whoever sends SIGTERM again and again must not keep a worker alive that does not stop.
func TestAskingToStopAgainGivesNoMoreTime(t *testing.T) {
	b := newBench(t)
	b.start([]string{fakeTest + "=does not stop"})
	b.served("1", "mounted")
	over := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			_ = b.cmd.Signal(unix.SIGTERM) // it may have ended
			select {
			case <-over:
				return
			case <-tick.C:
			}
		}
	}()
	defer func() { close(over); <-done }()
	b.exits(1)
}

// A worker that has just been started and has asked for no signal yet is not killed by a
// stop: it hears of it as soon as it listens, and the exit code is that of a stop.
func TestAStopThatComesBeforeTheWorkerListens(t *testing.T) {
	b := newBench(t)
	b.start([]string{fakeTest + "=slow start"})
	for _, err := os.Stat(filepath.Join(b.dir, "started")); err != nil; _, err = os.Stat(filepath.Join(b.dir, "started")) {
		pause(t)
	}
	b.signal(unix.SIGTERM)
	b.logs("told to stop")
	b.write("go on", "")
	b.exits(0)
}

// A request that no worker survives comes again at each of them: they are ready, and crash.
// The mount must not stay so for ever.
func TestWorkersThatCrashAsSoonAsTheyServeAreGivenUp(t *testing.T) {
	b := newBench(t)
	b.install("@version=1", "@fault=panics serving")
	b.write("timeout", "1s")
	b.start(nil)
	b.exits(1)
	b.logs("crash again and again")
	b.dropped()
}
