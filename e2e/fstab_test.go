package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"ftfuse/bench/rig"
)

// fstabHost is a mount namespace in which the binary is installed as mount(8)'s and umount(8)'s
// helper, with a /dev of its own, so that the machine's /sbin and /dev stay what they are.
type fstabHost struct {
	t    *testing.T
	p    *rig.Pair
	pid  int
	root string // the namespace's root, seen from the test
}

const fstabSetup = `set -e
mkdir -p up work dev
mount -t tmpfs none up && mkdir up/u up/w up/e up/ew
mount -t overlay -o lowerdir=/usr/sbin,upperdir=up/u,workdir=up/w overlay /usr/sbin
mount -t overlay -o lowerdir=/etc,upperdir=up/e,workdir=up/ew overlay /etc
for name in mount.ftfuse mount.fuse.ftfuse umount.fuse.ftfuse; do ln -s "$1" /usr/sbin/$name; done
mount -t tmpfs none dev && cp -a /dev/null /dev/zero /dev/fuse /dev/urandom dev && mkdir dev/shm
mount --bind dev /dev
echo ready
exec cat`

func newFstabHost(t *testing.T, p *rig.Pair) *fstabHost {
	t.Helper()
	need(t, "unshare", "nsenter", "findmnt")
	must(t, p.WriteConfigs())
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", fstabSetup, "sh", bin)
	cmd.Dir = p.Dir
	var errs bytes.Buffer
	cmd.Stderr = &errs
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	h := &fstabHost{t: t, p: p, pid: cmd.Process.Pid, root: fmt.Sprintf("/proc/%d/root", cmd.Process.Pid)}
	t.Cleanup(func() {
		if h.mounted() {
			h.run("umount -l " + p.Point())
		}
		for _, pid := range h.processes() {
			h.run("kill -9 " + pid)
		}
		in.Close()
		_ = cmd.Wait()
	})
	if b := make([]byte, 6); true {
		if _, err := io.ReadFull(out, b); err != nil || string(b) != "ready\n" {
			t.Skipf("needs a mount namespace with an overlay: %q, %v: %s", b, err, errs.String())
		}
	}
	return h
}

// run runs a script in the namespace, and returns its exit code and all that it said.
func (h *fstabHost) run(script string) (int, string) {
	h.t.Helper()
	cmd := exec.Command("nsenter", "-t", strconv.Itoa(h.pid), "-m", "-w"+h.p.Dir, "sh", "-c", script)
	out, _ := cmd.CombinedOutput() // the exit code says it
	return cmd.ProcessState.ExitCode(), string(out)
}

// wants runs a script that has to exit with code.
func (h *fstabHost) wants(code int, script string) string {
	h.t.Helper()
	got, out := h.run(script)
	if got != code {
		h.t.Fatalf("%s: exit code %d, want %d: %s", script, got, code, out)
	}
	return out
}

// fstab writes the line of the mount with the given options.
func (h *fstabHost) fstab(options string) {
	h.t.Helper()
	line := fmt.Sprintf("%s %s ftfuse %s 0 0\n", h.p.MountConfig(), h.p.Point(), options)
	must(h.t, os.WriteFile(filepath.Join(h.p.Dir, "fstab"), []byte(line), 0o644))
}

func (h *fstabHost) mounted() bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", h.pid))
	return err == nil && strings.Contains(string(text), " "+h.p.Point()+" fuse.ftfuse ")
}

// processes are those of the mount, in the background.
func (h *fstabHost) processes() []string {
	var all []string
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well-formed
	for _, dir := range dirs {
		args, _ := os.ReadFile(filepath.Join(dir, "cmdline")) // gone meanwhile: none
		if strings.Contains(string(args), "mount.ftfuse\x00"+h.p.MountConfig()+"\x00") {
			all = append(all, filepath.Base(dir))
		}
	}
	return all
}

// in is a path below the mount, as the test's process sees it.
func (h *fstabHost) in(name string) string { return h.root + h.p.In(name) }

// TestMountFromFstab: mount(8) returns when programs can write, findmnt, df and mount show
// what they should, the options are in force, and umount(8) returns when all is delivered.
func TestMountFromFstab(t *testing.T) {
	p := newPair(t)
	h := newFstabHost(t, p)
	startReceive(t, p)
	h.fstab("_netdev,nofail,noauto,x-systemd.requires=network-online.target,noexec,noatime,uid=1234,gid=4321,umask=027,log=" + p.Dir + "/log")
	for round := range 3 {
		file := fmt.Sprintf("%d.log", round)
		h.wants(0, "mount -T fstab "+p.Point()+" && stat -f -c %T "+p.Point()+" | grep -q fuse && echo first >"+p.In(file))
		if out := h.wants(0, "findmnt -n -o SOURCE,FSTYPE,OPTIONS "+p.Point()); !strings.HasPrefix(out, p.MountConfig()+" fuse.ftfuse rw,nosuid,nodev,noexec,noatime,") {
			t.Errorf("findmnt: %s", out)
		}
		if out := h.wants(0, "mount"); !strings.Contains(out, p.MountConfig()+" on "+p.Point()+" type fuse.ftfuse (rw,") || !strings.Contains(out, ",_netdev") {
			t.Errorf("mount: %s", out)
		}
		if out := h.wants(0, "df --output=size,used,avail,pcent -B1M "+p.Point()+" | tail -1"); strings.Fields(out)[0] != "8192" {
			t.Errorf("df: %s", out)
		}
		if out := h.wants(0, "stat -c '%u %g %a' "+p.In(file)); out != "1234 4321 640\n" {
			t.Errorf("the file is %s", out)
		}
		h.wants(0, "mount -T fstab -a -O _netdev; findmnt -n "+p.Point()+" | wc -l | grep -qx 1")
		if out := h.wants(32, "mount -T fstab "+p.Point()); !strings.Contains(out, "already mounted") {
			t.Errorf("mounted twice: %s", out)
		}
		if out := h.wants(32, "exec 5>>"+p.In(file)+"; umount "+p.Point()); !strings.Contains(out, "target is busy") {
			t.Errorf("unmounted while in use: %s", out)
		}
		h.wants(0, "seq 200000 >>"+p.In(file)+" && umount "+p.Point())
		if got := read(t, p.Out(file)); len(got) != len("first\n")+1288895 || !bytes.HasSuffix(got, []byte("\n199999\n200000\n")) {
			t.Errorf("after umount %d bytes are at the aggregator", len(got))
		}
		if left := h.processes(); len(left) != 0 {
			t.Errorf("after umount: processes %v", left)
		}
	}
	if log := read(t, p.Dir+"/log"); !bytes.Contains(log, []byte("msg=ready")) || bytes.Contains(log, []byte("level=ERROR")) {
		t.Errorf("the log:\n%s", log)
	}
}

// TestMountHelperExitCodes are those of mount(8), and each failure names its reason.
func TestMountHelperExitCodes(t *testing.T) {
	p := newPair(t)
	h := newFstabHost(t, p)
	conf, point := p.MountConfig(), p.Point()
	must(t, os.WriteFile(p.Dir+"/bad.toml", []byte("[mount]\npoint = 1\n"), 0o644))
	must(t, os.WriteFile(p.Dir+"/file", nil, 0o644))
	for _, c := range []struct {
		code         int
		script, says string
	}{
		{0, "mount -f -t ftfuse " + conf + " " + point, ""},
		{0, "mount -f -s -t ftfuse -o fsc " + conf + " " + point, ""},
		{1, "mount -t ftfuse -o fsc " + conf + " " + point, "unknown key: fsc"},
		{1, "mount -t ftfuse -o ro " + conf + " " + point, "ro: "},
		{1, "mount -t ftfuse -o uid=x " + conf + " " + point, `uid="x"`},
		{1, "mount -t ftfuse -o log=x " + conf + " " + point, "write log=/PATH"},
		{1, "mount.ftfuse " + conf, "want SPEC and DIR"},
		{1, "mount.ftfuse -q " + conf + " " + point, "-q: unknown option"},
		{1, "mount.ftfuse " + conf + " " + point + " -N /proc/1/ns/mnt", "nsenter"},
		{32, "mount -t ftfuse " + p.Dir + "/bad.toml " + point, p.Dir + "/bad.toml:2: "},
		{32, "mount -t ftfuse -o config=" + p.Dir + "/none.toml x " + point, "none.toml"},
		{32, "mount -t ftfuse -o log=/proc/x/y " + conf + " " + point, "-o log: "},
		{32, "mount.ftfuse " + conf + " " + p.Dir + "/file", "not usable"}, // the worker finds out
		{1, "umount.fuse.ftfuse", "mount point must follow"},
		{32, "umount.fuse.ftfuse " + point, "not mounted"},
	} {
		if out := h.wants(c.code, c.script); !strings.Contains(out, c.says) {
			t.Errorf("%s says %q, want %q", c.script, out, c.says)
		}
		if h.mounted() || len(h.processes()) > 0 {
			t.Fatalf("%s left a mount or a process: %v", c.script, h.processes())
		}
	}
	if out := h.wants(0, "mount -v -t fuse.ftfuse -o config="+conf+" any "+point+" && umount -l "+point); !strings.Contains(out, "any mounted on "+point) {
		t.Errorf("mount -v says %q", out)
	}
	h.ended()
}

// ended waits until no process of the mount is left.
func (h *fstabHost) ended() {
	h.t.Helper()
	eventually(h.t, patience, func() error {
		if left := h.processes(); len(left) > 0 {
			return fmt.Errorf("processes %v are left", left)
		}
		return nil
	})
}

// TestUmountWaitedForAnotherMount: of a mount with config= umount(8) waited for the end of the
// one that /etc/ftfuse/ftfuse.toml is about, which goes on, until shutdown_timeout was over and 15
// seconds more, and said that it was still sending.
func TestUmountWaitedForAnotherMount(t *testing.T) {
	p := newPair(t)
	p.Top = `shutdown_timeout = "1s"`
	h := newFstabHost(t, p)
	startReceive(t, p)
	other := p.Dir + "/other"
	text := strings.NewReplacer(p.MountState, other+"-state", p.Point(), other).Replace(string(read(t, p.MountConfig())))
	must(t, os.MkdirAll(h.root+"/etc/ftfuse", 0o755))
	must(t, os.WriteFile(h.root+"/etc/ftfuse/ftfuse.toml", []byte(text), 0o644))
	h.wants(0, "mkdir "+other+" && mount -t ftfuse -o _netdev any "+other)
	t.Cleanup(func() { h.run("umount " + other) })
	h.wants(0, "mount -t ftfuse -o _netdev,config="+p.MountConfig()+" second "+p.Point()+" && echo a >"+p.In("a.log"))
	if out := h.wants(0, "umount "+p.Point()); out != "" {
		t.Errorf("umount says %q", out)
	}
	h.wants(0, "echo b >"+other+"/b.log")
	arrives(t, p.Out("a.log"), []byte("a\n"))
	h.wants(0, "umount "+other)
	arrives(t, p.Out("b.log"), []byte("b\n"))
}

// TestMountAgainWhileItSends: umount without the helper (or a killed one) leaves a process that
// sends what it has; the next mount waits for its end and loses nothing, and neither does one
// whose worker was killed.
func TestMountAgainWhileItSends(t *testing.T) {
	p := newPair(t)
	p.Top = `shutdown_timeout = "2s"`
	h := newFstabHost(t, p)
	h.fstab("noauto")
	want := new(bytes.Buffer)
	for round := range 2 { // nobody receives
		h.wants(0, fmt.Sprintf("mount -T fstab %s && echo %d >>%s", p.Point(), round, p.In("a.log")))
		fmt.Fprintf(want, "%d\n", round)
		h.wants(0, "umount -i "+p.Point())
		if len(h.processes()) == 0 {
			t.Error("it did not wait for anybody to take what it has")
		}
	}
	h.wants(0, "mount -T fstab "+p.Point())
	f, err := os.OpenFile(h.in("a.log"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	workers := h.processes()
	for _, pid := range workers {
		if st := read(t, "/proc/"+pid+"/stat"); strings.Contains(string(st), ") ") && strings.Fields(string(st))[3] != "1" {
			h.wants(0, "kill -9 "+pid)
		}
	}
	for i := range 100 {
		_, err := fmt.Fprintf(f, "line %d\n", i)
		must(t, err)
		fmt.Fprintf(want, "line %d\n", i)
	}
	must(t, f.Close())
	startReceive(t, p)
	arrives(t, p.Out("a.log"), want.Bytes())
	h.wants(0, "umount "+p.Point())
	h.ended()
}

// TestTheMountsLogGoesToTheSystemsLog: each line at its level, where /dev/log is there.
func TestTheMountsLogGoesToTheSystemsLog(t *testing.T) {
	p := newPair(t)
	h := newFstabHost(t, p)
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: h.root + "/dev/log", Net: "unixgram"})
	must(t, err)
	defer c.Close()
	h.fstab("noauto")
	h.wants(0, "mount -T fstab "+p.Point()+" && umount -l "+p.Point())
	var got strings.Builder
	must(t, c.SetReadDeadline(time.Now().Add(patience)))
	for b := make([]byte, 64<<10); !strings.Contains(got.String(), "msg=stopped"); {
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("%v after:\n%s", err, got.String())
		}
		got.Write(b[:n])
	}
	for _, line := range []string{"msg=starting", "msg=ready", "msg=\"stopping: it was unmounted\""} {
		at := strings.Index(got.String(), line)
		if at < 0 || !strings.HasPrefix(got.String()[strings.LastIndex(got.String()[:at], "<"):], "<30>") { // daemon.info
			t.Errorf("%s is missing, or not at level info, in:\n%s", line, got.String())
		}
	}
	h.ended()
}
