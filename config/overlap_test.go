package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// conflictAt fails unless Parse refuses the text for one conflict at the key.
func conflictAt(t *testing.T, text, key string) {
	t.Helper()
	_, err := Parse("/etc/a.toml", []byte(text))
	var e *Error
	if !errors.As(err, &e) || len(e.Problems) != 1 || !errors.Is(e, ErrConflict) || e.Problems[0].Key != key {
		t.Errorf("got %v, want one conflict at %s for\n%s", err, key, text)
	}
}

func TestOverlapThroughSymbolicLinks(t *testing.T) {
	dir := t.TempDir()
	real := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	for _, d := range []string{"mnt", "state", "out"} {
		if err := os.Mkdir(real(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"to-mnt": real("mnt"), "up": "../" + filepath.Base(dir) + "/mnt", "chain": real("up"),
		"loop": "loop", "to-state": real("state"), "to-out": real("out"),
	} {
		if err := os.Symlink(target, real(link)); err != nil {
			t.Fatal(err)
		}
	}
	conf := func(point, state, out string) string {
		return fmt.Sprintf("state_dir = %q\n[mount]\npoint = %q\n[[receive.output]]\ndir = %q\n", state, point, out)
	}
	for name, tc := range map[string]struct{ point, state, out, key string }{
		"state by link":          {"mnt", "to-mnt/s", "out", "state_dir"},
		"state by relative link": {"mnt", "up/s", "out", "state_dir"},
		"state by two links":     {"mnt", "chain/s/not/there", "out", "state_dir"},
		"point is the link":      {"to-mnt", "mnt/s", "out", "state_dir"},
		"point in state":         {"to-state/m", "state", "out", "mount.point"},
		"out by link":            {"mnt", "state", "to-mnt/x", "receive.output.dir"},
		"out around state":       {"mnt", "out/state", "to-out", "receive.output.dir"},
	} {
		t.Run(name, func(t *testing.T) { conflictAt(t, conf(real(tc.point), real(tc.state), real(tc.out)), tc.key) })
	}
	for name, text := range map[string]string{
		"apart":          conf(real("mnt"), real("state"), real("out")),
		"alike":          conf(real("mnt"), real("mnt-state"), real("mnt2")),
		"loop":           conf(real("mnt"), real("loop", "x"), real("out")),
		"out in state":   conf(real("mnt"), real("state"), real("state", "out")),
		"through parent": conf(real("mnt"), real("to-out", "state"), real("state")),
	} {
		if _, err := Parse("/etc/a.toml", []byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheFileMustNotLieBelowTheMountPoint(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.toml")
	if err := os.WriteFile(file, []byte(fmt.Sprintf("[mount]\npoint = %q\n", dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Load(file)
	var p *Problem
	if !errors.As(err, &p) || !errors.Is(p, ErrConflict) || p.Line != 1 {
		t.Errorf("got %v", err)
	}
}

// A mount point whose daemon does not answer, or is gone, is looked at by nobody: a
// stat of it would hang, or fail, and with it the start that is to mend it.
func TestLoadDoesNotAskTheMountItself(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := t.TempDir()
	point := filepath.Join(dir, "mnt")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	// Nobody ever reads requests from fuse: whoever asks this file system waits.
	err = unix.Mount("ftfuse-test", point, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd()))
	if err != nil {
		fuse.Close()
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		fuse.Close()
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	if err := os.Symlink(point, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	load := func(state string) error {
		done := make(chan error, 1)
		go func() {
			_, err := Parse("/etc/a.toml", []byte(fmt.Sprintf("state_dir = %q\n[mount]\npoint = %q\n[receive]\n", state, point)))
			done <- err
		}()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			fuse.Close() // lets the waiting goroutine go
			t.Fatal("Parse waits for the mount's own daemon")
			return nil
		}
	}
	both := func() {
		if err := load(filepath.Join(dir, "state")); err != nil {
			t.Error(err)
		}
		if err := load(filepath.Join(dir, "link", "state", "x")); !errors.Is(err, ErrConflict) {
			t.Errorf("a state_dir behind a link into the mount gives %v", err)
		}
	}
	both()
	fuse.Close() // now the daemon is dead: ENOTCONN
	both()
}
