package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// makeInstall installs the binary under test.
func makeInstall(t *testing.T, settings ...string) {
	t.Helper()
	need(t, "make", "install")
	args := append([]string{"-s", "-C", "..", "-o", "build", "install", "BUILT=" + bin}, settings...)
	if out, err := exec.Command("make", args...).CombinedOutput(); err != nil {
		t.Fatalf("make install: %v\n%s", err, out)
	}
}

// TestInstallPutsEverythingBelowDestdir, and what is installed names the places without it.
func TestInstallPutsEverythingBelowDestdir(t *testing.T) {
	dest := t.TempDir()
	makeInstall(t, "DESTDIR="+dest, "PREFIX=/usr", "NOTIFYRELOAD=yes")
	var got []string
	must(t, filepath.WalkDir(dest, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.Contains(path, "/share/doc/") {
			got = append(got, strings.TrimPrefix(path, dest))
		}
		return err
	}))
	if want := "/sbin/mount.ftfuse /sbin/mount.fuse.ftfuse /sbin/umount.fuse.ftfuse /usr/bin/ftfuse" +
		" /usr/lib/systemd/system/ftfuse-mount.service /usr/lib/systemd/system/ftfuse-receive.service" +
		" /usr/lib/systemd/system/ftfuse-relay.service /usr/lib/sysusers.d/ftfuse.conf"; strings.Join(got, " ") != want {
		t.Errorf("installed:\n%s\nwant:\n%s", strings.Join(got, " "), want)
	}
	if to, err := os.Readlink(dest + "/sbin/mount.ftfuse"); err != nil || to != "/usr/bin/ftfuse" {
		t.Errorf("mount.ftfuse is a link to %q, %v", to, err)
	}
	for _, role := range []string{"mount", "relay", "receive"} {
		unit := string(read(t, dest+"/usr/lib/systemd/system/ftfuse-"+role+".service"))
		if !strings.Contains(unit, "\nExecStart=/usr/bin/ftfuse "+role+" -c /etc/ftfuse/ftfuse.toml\n") ||
			!strings.Contains(unit, "\nType=notify-reload\n") || !strings.Contains(unit, "\nKillMode=mixed\n") || regexp.MustCompile(`(?m)^[^#]*@[a-z]+@`).MatchString(unit) {
			t.Errorf("the unit of %s:\n%s", role, unit)
		}
		if stdout, stderr, code := ftfuse(t, "check", "-c", dest+"/usr/share/doc/ftfuse/examples/"+role+".toml"); code != 0 {
			t.Errorf("the example of %s: %d %s%s", role, code, stdout, stderr)
		}
	}
	if out, err := exec.Command("make", "-s", "-C", "..", "uninstall", "DESTDIR="+dest, "PREFIX=/usr").CombinedOutput(); err != nil {
		t.Fatalf("make uninstall: %v\n%s", err, out)
	}
	if out := sh(t, `find "$1" ! -type d`, dest); out != "" {
		t.Errorf("uninstall leaves %s", out)
	}
}

// TestUnitsAreGoodAndHardened: systemd's own tool finds nothing to say about the units, and
// what it says of their exposure does not get worse.
func TestUnitsAreGoodAndHardened(t *testing.T) {
	need(t, "systemd-analyze")
	dir := t.TempDir()
	makeInstall(t, "PREFIX="+dir, "SBINDIR="+dir+"/sbin", "SYSCONFDIR="+dir+"/etc")
	for role, threshold := range map[string]string{"mount": "53", "relay": "17", "receive": "17"} { // tenths; 100 is no protection at all
		unit := dir + "/lib/systemd/system/ftfuse-" + role + ".service"
		if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("systemd-analyze verify of %s: %v\n%s", role, err, out)
		}
		if out, err := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold="+threshold, unit).CombinedOutput(); err != nil {
			t.Errorf("systemd-analyze security of %s: %v\n%s", role, err, out[max(0, len(out)-300):])
		}
	}
	// Any of these gives a service a mount namespace of its own (systemd.exec(5)).
	private := regexp.MustCompile(`(?m)^(Private(Tmp|Devices|Mounts|IPC)|Protect(System|Home|Proc|ControlGroups|Kernel\w+)|ProcSubset|MountFlags|(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec)Paths|Bind\w*Paths|TemporaryFileSystem|Root\w+|DynamicUser)=`)
	if found := private.FindString(string(read(t, dir+"/lib/systemd/system/ftfuse-mount.service"))); found != "" {
		t.Errorf("the mount's unit has %s: nobody else would see the mount", found)
	}
}

// TestAReloadOfABadFileFails: systemd tells of a reload by signal only that it has ended
// (systemd.service(5), Type=notify-reload; sd_notify(3) knows no failure of it), so the unit has the file
// checked by a command, whose exit status is that of `systemctl reload`.
func TestAReloadOfABadFileFails(t *testing.T) {
	for _, notifyReload := range []string{"yes", "no"} {
		dir := t.TempDir()
		makeInstall(t, "PREFIX="+dir, "SBINDIR="+dir+"/sbin", "SYSCONFDIR="+dir+"/etc", "NOTIFYRELOAD="+notifyReload)
		file := dir + "/etc/ftfuse/ftfuse.toml"
		for _, role := range []string{"mount", "relay", "receive"} {
			unit := string(read(t, dir+"/lib/systemd/system/ftfuse-"+role+".service"))
			var commands []string
			for line := range strings.Lines(unit) {
				if command, ok := strings.CutPrefix(line, "ExecReload="); ok {
					commands = append(commands, strings.TrimSpace(command))
				}
			}
			want := []string{dir + "/bin/ftfuse check -c " + file}
			if notifyReload == "no" { // in their order, and none after one that failed
				want = append(want, "/bin/kill -HUP $MAINPID")
			}
			if !slices.Equal(commands, want) {
				t.Fatalf("%s reloads by %q, want %q", role, commands, want)
			}
			must(t, os.WriteFile(file, read(t, "../testdata/"+role+".toml"), 0o644))
			if out, err := exec.Command("sh", "-c", commands[0]).CombinedOutput(); err != nil {
				t.Errorf("%s: a good file: %v\n%s", role, err, out)
			}
			must(t, os.WriteFile(file, []byte("host = \"h\"\nnonsense = 1\n"), 0o644))
			out, err := exec.Command("sh", "-c", commands[0]).CombinedOutput()
			if err == nil || !strings.Contains(string(out), file+":2: ") || !strings.Contains(string(out), "nonsense") {
				t.Errorf("%s: a bad file: %v\n%s", role, err, out)
			}
		}
	}
}
