package kernel

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ftfuse/internal/failpoint"
)

func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	if s := Probe(filepath.Join(dir, "not", "there", "yet")); !s.Passthrough || s.Why != "" {
		t.Errorf("%+v", s)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("it left %v, %v", list, err)
	}
	want := func(what, why string) {
		t.Helper()
		if s := Probe(dir); s.Passthrough || !strings.Contains(s.Why, why) {
			t.Errorf("%s: %+v, want %q", what, s, why)
		}
	}
	if err := failpoint.Set("kernel/no-passthrough", "error"); err != nil {
		t.Fatal(err)
	}
	want("an old kernel", "Linux 6.9")
	failpoint.Clear("kernel/no-passthrough")

	was := sysctls
	defer func() { sysctls = was }()
	sysctls = t.TempDir()
	if err := os.WriteFile(filepath.Join(sysctls, "max_request_timeout"), []byte("60\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	want("a timeout", "fs.fuse.max_request_timeout is 60")
}

// TestProbeOfAUserSaysRoot: it says so before it tries.
func TestProbeOfAUserSaysRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		if s := Probe("/tmp"); s.Passthrough || !strings.Contains(s.Why, "root") {
			t.Errorf("%+v", s)
		}
		return
	}
	open(t, os.Args[0])
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestADefaultTimeoutIsOverridden: a write that waits for a full queue must not end the
// connection, so the reply to INIT asks for the longest time where there is a default.
func TestADefaultTimeoutIsOverridden(t *testing.T) {
	was := sysctls
	defer func() { sysctls = was }()
	sysctls = t.TempDir()
	request, reply, err := decodeState(golden(t))
	if err != nil {
		t.Fatal(err)
	}
	if out := rewrite(request, reply, true); ne.Uint16(out[outTimeout:]) != 0 || ne.Uint32(out[outFlags2:])&flag2Timeout != 0 {
		t.Error("a timeout is asked for where there is none")
	}
	if err := os.WriteFile(filepath.Join(sysctls, "default_request_timeout"), []byte("30\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := rewrite(request, reply, true)
	if got := ne.Uint16(out[outTimeout:]); got != 65535 || ne.Uint32(out[outFlags2:])&flag2Timeout == 0 {
		t.Errorf("timeout %d, flags2 %#x", got, ne.Uint32(out[outFlags2:]))
	}
}
