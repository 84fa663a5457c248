package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// stopped runs a receiver once, so that there is a queue, and returns its
// configuration.
func stopped(t *testing.T) (conf, dir string) {
	t.Helper()
	dir = t.TempDir()
	conf = receiverConfig(t, dir, "127.0.0.1:0", "")
	p := start(t, nil, binary, "receive", "-c", conf)
	p.waitFor("ready")
	p.signal(syscall.SIGTERM)
	p.exits(exitOK)
	return conf, filepath.Join(dir, "state", "receive", "queue")
}

// says fails unless the command ends with the code and prints the text.
func says(t *testing.T, code int, text string, args ...string) {
	t.Helper()
	got, stdout, stderr := ftfuse(t, nil, args...)
	if got != code || !strings.Contains(stdout+stderr, text) {
		t.Errorf("ftfuse %s: exit code %d, want %d, and %q in:\n%s%s", strings.Join(args, " "), got, code, text, stdout, stderr)
	}
}

func TestQueueOfAStoppedRole(t *testing.T) {
	conf, dir := stopped(t)
	says(t, 0, "newest", "queue", "ls", "-c", conf)
	says(t, 0, dir+": whole: ", "queue", "verify", "-c", conf, "--role", "receive")
	says(t, 0, "nothing to repair", "queue", "repair", "-c", conf)
}

func TestQueueOfARoleThatNeverRan(t *testing.T) {
	conf := receiverConfig(t, t.TempDir(), "127.0.0.1:0", "")
	says(t, 0, "no queue yet", "queue", "verify", "-c", conf)
	says(t, 1, "no queue yet", "queue", "verify", "-c", conf, "--role", "receive")
	says(t, 1, "no queue yet", "queue", "repair", "-c", conf)
}

func TestQueueOfARunningRoleIsLeftAlone(t *testing.T) {
	conf := receiverConfig(t, t.TempDir(), "127.0.0.1:0", "")
	p := start(t, nil, binary, "receive", "-c", conf)
	p.waitFor("ready")
	for _, command := range []string{"ls", "verify", "repair"} {
		says(t, 1, "stop the role first", "queue", command, "-c", conf)
	}
	p.signal(syscall.SIGTERM)
	p.exits(exitOK)
}

func TestDamagedQueueIsNamed(t *testing.T) {
	conf, dir := stopped(t)
	segments, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no segments in %s (%v)", dir, err)
	}
	newest := segments[len(segments)-1]
	info, err := os.Stat(newest)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(newest, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	// All pages behind the two that say where the tree begins.
	if _, err := f.WriteAt(make([]byte, min(info.Size(), 1<<20)-2*4096), 2*4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	says(t, 1, dir+": damaged: ", "queue", "verify", "-c", conf)
	says(t, 1, "ftfuse queue repair --role receive", "queue", "verify", "-c", conf)
	says(t, 0, "state damaged", "queue", "ls", "-c", conf)
	says(t, 1, "ftfuse queue repair", "receive", "-c", conf)
}

func TestRepairNeedsOneRole(t *testing.T) {
	says(t, 2, "--role", "queue", "repair", "-c", file(t, goodConfig))
}
