package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ftfuse/internal/mountinfo"
)

func TestAFailedCommitStopsTheRoleAndDropsTheConnection(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := newRigStopped(t, perWrite)
	r.env = []string{"FTFUSE_FAILPOINTS=queue/commit-before=error@20"}
	r.start()
	w := startActor(t, "numbered", r.path("a.log"), "w")
	n := w.accepted() // ends when its write fails
	err := r.wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("the daemon ended with %v, want exit code 1", err)
	}
	if all, _ := mountinfo.On(r.point); len(all) != 0 {
		t.Fatalf("%v is still mounted", all)
	}
	r.env = nil
	r.start()
	r.stop()
	checkNumbered(t, r.delivered(), "a.log", map[string]int{"w": n})
}

func TestUnlinkedFileOfAKilledDaemonIsCapturedAndRemoved(t *testing.T) {
	r := newRig(t, perWrite)
	for i := range 10 {
		f := appender(t, r.path("a"))
		put(t, f, fmt.Sprintf("line %d\n", i))
		if err := os.Remove(r.path("a")); err != nil {
			t.Fatal(err)
		}
		put(t, f, fmt.Sprintf("more %d\n", i))
	}
	r.kill()
	r.start()
	r.stop()
	want := ""
	for i := range 10 {
		want += fmt.Sprintf("line %d\nmore %d\n", i, i)
	}
	got := r.delivered()["a"]
	for line := range strings.Lines(want) {
		if strings.Count(got, line) != 1 {
			t.Fatalf("%q is %d times in %q", line, strings.Count(got, line), got)
		}
	}
	if names, err := os.ReadDir(r.dir + "/state/mount/spool"); err != nil || len(names) != 0 {
		t.Fatalf("%d spool files without a name are left, %v", len(names), err)
	}
}

func TestSpoolDiskFullIsENOSPCAndLosesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := newRigStopped(t, "")
	state := filepath.Join(r.dir, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "size=48m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.kill(); syscall.Unmount(state, syscall.MNT_DETACH) })
	r.start()
	o := startActor(t, "fill", r.path("a.log"))
	var taken int
	for l := o.next(); ; l = o.next() {
		if l == "wrote" {
			continue
		}
		fmt.Sscanf(l, "%d", &taken)
		if !strings.Contains(l, "no space left") {
			t.Fatalf("a write to a full disk: %s, want ENOSPC", l)
		}
		break
	}
	if taken < 4<<20 {
		t.Fatalf("only %d bytes were taken", taken)
	}
	r.kill()
	if err := syscall.Mount("tmpfs", state, "tmpfs", syscall.MS_REMOUNT, "size=512m"); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.stop()
	if got := len(r.delivered()["a.log"]); got != taken {
		t.Fatalf("%d bytes delivered, %d were accepted", got, taken)
	}
}

func TestAUserWhoIsNotRootMountsWithFusermount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Skip("the package fuse3 is not installed")
	}
	if st, err := os.Stat("/dev/fuse"); err != nil || st.Mode().Perm() != 0o666 {
		t.Skip("/dev/fuse is not open to everybody here, as udev leaves it elsewhere")
	}
	if st, err := os.Stat(filepath.Dir(os.Args[0])); err != nil || st.Mode().Perm()&0o5 != 0o5 {
		t.Skip("this test binary is where others cannot run it: build it with go test -c")
	}
	r := newRigStopped(t, "allow_other = false\n")
	for _, dir := range []string{r.point, r.dir, filepath.Dir(r.dir)} {
		if err := errors.Join(os.Chmod(dir, 0o777), os.Chown(dir, 65534, 65534)); err != nil {
			t.Fatal(err)
		}
	}
	r.cred = &syscall.Credential{Uid: 65534, Gid: 65534}
	r.start()
	sh := func(script string) string {
		t.Helper()
		cmd := exec.Command("sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.cred}
		cmd.Dir = "/"
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v %s", script, err, out)
		}
		return string(out)
	}
	if got := sh("cd " + r.point + " && mkdir d && echo one > d/a && echo two >> d/a && chmod 600 d/a && cat d/a"); got != "one\ntwo\n" {
		t.Fatalf("%q", got)
	}
	if got := sh("chown 0 " + r.point + "/d/a 2>&1 || echo refused"); !strings.Contains(got, "refused") {
		t.Fatalf("%q", got)
	}
	r.stop()
	r.wantDelivered("d/a", "one\ntwo\n")
}
