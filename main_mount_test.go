package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// MOUNTPOINT and -o of the command line go before the file.
func TestMountOnTheCommandLine(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "a.toml")
	text := fmt.Sprintf("host = \"h\"\nstate_dir = %q\nshutdown_timeout = 0\nlog.format = \"json\"\n[mount]\npoint = %q\n[[mount.forward]]\nprimary = [\"127.0.0.1:9\"]\n",
		filepath.Join(dir, "state"), filepath.Join(dir, "not-here"))
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	point := filepath.Join(dir, "here")
	p := start(t, nil, binary, "mount", "-c", conf, "-o", "rw,uid=1234,gid=4321,umask=077", point)
	if ready := p.waitFor("ready"); ready["point"] != point {
		t.Errorf("ready says the point is %v", ready["point"])
	}
	name := filepath.Join(point, "x")
	if err := os.WriteFile(name, []byte("hello\n"), 0o666); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if st.Uid != 1234 || st.Gid != 4321 || info.Mode().Perm() != 0o600 {
		t.Errorf("the file belongs to %d:%d with mode %v, want 1234:4321 and 0600", st.Uid, st.Gid, info.Mode().Perm())
	}
	p.signal(syscall.SIGTERM)
	p.exits(exitOK)
	if _, err := os.Stat(filepath.Join(dir, "not-here")); err == nil {
		t.Error("the mount point of the file was used")
	}
}
