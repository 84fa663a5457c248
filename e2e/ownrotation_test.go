package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ftfuse/bench/tally"
)

// gather writes what an output file and those that ftfuse rotated away from it have, in order,
// to one file, which it returns; the standard programs expand the compressed ones, and each of
// those must be whole.
func gather(t *testing.T, out string) (path string, rotated int) {
	t.Helper()
	names := rotatedOnes(t, out)
	var all bytes.Buffer
	for _, name := range append(names, out) {
		cmd := exec.CommandContext(t.Context(), "cat", name)
		switch filepath.Ext(name) {
		case ".zst":
			cmd = exec.CommandContext(t.Context(), "zstd", "-dc", name)
		case ".gz":
			cmd = exec.CommandContext(t.Context(), "gzip", "-dc", name)
		}
		cmd.Stdout = &all
		var said bytes.Buffer
		cmd.Stderr = &said
		if _, err := os.Stat(name); name == out && err != nil {
			continue
		}
		if err := cmd.Run(); err != nil {
			t.Errorf("%s is not whole: %v: %s", name, err, said.String())
		}
	}
	path = filepath.Join(t.TempDir(), "all")
	must(t, os.WriteFile(path, all.Bytes(), 0o600))
	return path, len(names)
}

// plainOnes returns the rotated files that are to be compressed still.
func plainOnes(out string) error {
	left, err := filepath.Glob(out + ".[0-9][0-9][0-9][0-9][0-9][0-9]")
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("not compressed: %v", left)
	}
	return err
}

// The receiver rotates and compresses the file that programs' lines arrive in, and is killed
// again and again: every line stands once, in order, and each compressed file is whole.
func TestOwnRotationUnderKillsLosesAndDoublesNothing(t *testing.T) {
	need(t, "zstd", "gzip")
	for _, codec := range []string{"gzip", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			p := newPair(t)
			p.Outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\nrotate = { size = \"256KiB\", every = \"2s\", compress = %q }\n", p.OutDir(), codec)
			start(t, p)
			l := startLoad(t, p, "load.log", 3, loads["blocks"])
			out := p.Out("load.log")
			for range kills() {
				from, more := len(rotatedOnes(t, out)), 1+rand.IntN(3)
				eventually(t, patience, func() error {
					if now := len(rotatedOnes(t, out)); now < from+more {
						return fmt.Errorf("%d rotated files, want %d", now, from+more)
					}
					return nil
				})
				must(t, p.ReceiveRole.Kill())
				startReceive(t, p)
			}
			plan, results := l.finish(t)
			stop(t, p) // the mount waits until all is taken, the receiver until all is written
			startReceive(t, p)
			eventually(t, patience, func() error { return plainOnes(out) })
			must(t, p.ReceiveRole.Stop(patience))
			path, rotated := gather(t, out)
			f, err := os.Open(path)
			must(t, err)
			defer f.Close()
			c, err := tally.Check(f, plan)
			must(t, err)
			if !c.OK() || c.Lines != accepted(results) {
				t.Errorf("%v; %d lines were accepted", c, accepted(results))
			}
			t.Log(c, "in", rotated, "rotated files")
			if log := strings.Join(p.ReceiveRole.Log(), "\n"); strings.Contains(log, "stand twice") {
				t.Error("bytes may stand twice, says the receiver")
			}
		})
	}
}

// A rule's local output is rotated and compressed by the mount, which is killed again and
// again, holder and worker at once: what programs wrote stands once there, as at the receiver.
func TestOwnRotationOfALocalOutputUnderKills(t *testing.T) {
	need(t, "zstd")
	p := newPair(t)
	dir := filepath.Join(p.Dir, "local")
	p.Mount = fmt.Sprintf("[[mount.output]]\nname = \"copy\"\ndir = %q\nfile = \"%%F\"\nrotate = { size = \"256KiB\", compress = \"zstd\" }\n", dir)
	p.Rules = "[[mount.rule]]\npath = \"**\"\noutput = \"copy\"\n"
	start(t, p)
	job := loads["blocks"]
	job.Survive = true
	l := startLoad(t, p, "load.log", 3, job)
	out := filepath.Join(dir, "load.log")
	for range kills() {
		from := len(rotatedOnes(t, out))
		eventually(t, patience, func() error {
			if now := len(rotatedOnes(t, out)); now < from+2 {
				return fmt.Errorf("%d rotated files, want %d", now, from+2)
			}
			return nil
		})
		must(t, p.MountRole.Kill())
		startMount(t, p)
	}
	plan, results := l.finish(t)
	drained(t, l, results)
	eventually(t, patience, func() error { return plainOnes(out) })
	stop(t, p)
	path, rotated := gather(t, out)
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	c, err := tally.Check(f, plan)
	must(t, err)
	if remote := l.count(t, plan, results); !c.OK() || c.Lines != remote.Lines {
		t.Errorf("local %v, at the receiver %v", c, remote)
	}
	t.Log(c, "in", rotated, "rotated files")
}

// Rotation is switched on, changed and switched off by SIGHUP while programs write: every line
// stands once, in order; and a limit that comes later holds for what was rotated before.
func TestRotationIsChangedUnderLoad(t *testing.T) {
	need(t, "zstd", "gzip")
	p := newPair(t)
	rotate := func(how string) {
		p.Outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\n%s\n", p.OutDir(), how)
		must(t, p.WriteConfigs())
	}
	rotate("")
	start(t, p)
	l := startLoad(t, p, "load.log", 3, loads["blocks"])
	out := p.Out("load.log")
	for _, codec := range []string{"gzip", "none", "zstd"} {
		rotate(fmt.Sprintf("rotate = { size = \"128KiB\", compress = %q }", codec))
		from := len(rotatedOnes(t, out))
		must(t, p.ReceiveRole.Signal(syscall.SIGHUP))
		eventually(t, patience, func() error {
			if now := len(rotatedOnes(t, out)); now < from+3 {
				return fmt.Errorf("%d rotated files, want %d", now, from+3)
			}
			return nil
		})
	}
	rotate("")
	must(t, p.ReceiveRole.Signal(syscall.SIGHUP))
	grows(t, out, 1<<20)
	plan, results := l.finish(t)
	must(t, p.MountRole.Stop(patience))
	if log := strings.Join(p.ReceiveRole.Log(), "\n"); strings.Contains(log, "stand twice") || strings.Contains(log, "level=ERROR") {
		t.Error("the receiver complains")
	}
	must(t, p.ReceiveRole.Stop(patience))
	if n := accepted(results); n != int64(plan.Lines*plan.Writers-len(plan.Maybe)) {
		t.Fatalf("%d lines were accepted of %v", n, plan)
	}
	path, rotated := gather(t, out)
	countFile(t, path, plan)
	t.Log("in", rotated, "rotated files")
	rotate("rotate = { size = \"1GiB\" }")
	startReceive(t, p)
	rotate("rotate = { size = \"1GiB\", keep = 2 }")
	must(t, p.ReceiveRole.Signal(syscall.SIGHUP))
	eventually(t, patience, func() error {
		if left := rotatedOnes(t, out); len(left) != 2 {
			return fmt.Errorf("there are %v, want the newest two", left)
		}
		return nil
	})
	must(t, p.ReceiveRole.Stop(patience))
}

// rotatedOnes returns what ftfuse rotated away from a file.
func rotatedOnes(t *testing.T, out string) []string {
	t.Helper()
	names, err := filepath.Glob(out + ".[0-9][0-9][0-9][0-9][0-9][0-9]*")
	must(t, err)
	return names
}

// SIGUSR1: output files that were removed give their room back, though nothing comes for
// them, and what comes goes to the files that have the names.
func TestSIGUSR1ReopensOutputFiles(t *testing.T) {
	p := startPair(t)
	for _, name := range []string{"quiet.log", "app.log"} {
		sh(t, `echo before >"$1"`, p.In(name))
		holdsText(t, p.Out(name), "before\n")
	}
	held := func() error {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.ReceiveRole.PID()))
		must(t, err)
		var gone []string
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && strings.Contains(to, p.OutDir()) && strings.HasSuffix(to, "(deleted)") {
				gone = append(gone, to)
			}
		}
		if len(gone) > 0 {
			return fmt.Errorf("held are %v", gone)
		}
		return nil
	}
	must(t, os.Remove(p.Out("quiet.log")))
	must(t, os.Rename(p.Out("app.log"), p.Out("app.log.old")))
	if held() == nil {
		t.Fatal("the removed file is not held: the test shows nothing")
	}
	must(t, p.ReceiveRole.Signal(syscall.SIGUSR1))
	eventually(t, patience, held)
	sh(t, `echo after >>"$1"`, p.In("app.log"))
	holdsText(t, p.Out("app.log"), "after\n")
	holdsText(t, p.Out("app.log.old"), "before\n")
	if _, err := os.Stat(p.Out("quiet.log")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the removed file: %v", err)
	}
	stop(t, p)
}

// holdsText waits until a file has that text.
func holdsText(t *testing.T, path, want string) {
	t.Helper()
	eventually(t, patience, func() error {
		if raw, err := os.ReadFile(path); err != nil || string(raw) != want {
			return fmt.Errorf("%s has %q, want %q; %w", path, raw, want, err)
		}
		return nil
	})
}
