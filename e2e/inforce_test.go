package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/bench/rig"
)

// Why the daemon writes stands in `ftfuse check` and in the ready line: of a user, and where
// the kernel ends connections that wait. Root without the capability cannot mount at all,
// and is told what is missing.
func TestWhyTheDaemonWrites(t *testing.T) {
	needRoot(t)
	need(t, "unshare", "setpriv", "fusermount3")
	for _, c := range []struct{ name, setup, run, why, refused string }{
		{
			name: "user", why: "needs root (CAP_SYS_ADMIN)",
			setup: `[ -e "$D/fuse" ] || mknod "$D/fuse" c 10 229; chmod 666 "$D/fuse"; mount --bind "$D/fuse" /dev/fuse; chown -R 65534:65534 "$D"; cd /`,
			run:   "setpriv --reuid=65534 --regid=65534 --clear-groups",
		},
		{
			name: "timeout", why: "fs.fuse.max_request_timeout is 60",
			setup: `echo 60 >"$D/timeout"; mount --bind "$D/timeout" /proc/sys/fs/fuse/max_request_timeout`,
		},
		{
			name: "without the capability", why: "needs root (CAP_SYS_ADMIN)", refused: "root has no CAP_SYS_ADMIN here",
			run: "setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := os.Stat("/proc/sys/fs/fuse/max_request_timeout"); err != nil && c.name == "timeout" {
				t.Skip("this kernel has no such sysctl: ", err)
			}
			p := newPair(t)
			p.Mount = "allow_other = false"
			must(t, p.WriteConfigs())
			for d := p.Dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
				must(t, os.Chmod(d, 0o755))
			}
			installed(t, p)
			script := filepath.Join(p.Dir, "run.sh") // in a mount namespace of its own
			text := "#!/bin/sh -eu\nD=" + p.Dir + "\n" + c.setup + "\nexec " + c.run + " " + p.Bin + ` "$@"` + "\n"
			must(t, os.WriteFile(script, []byte("#!/bin/sh\nexec unshare -m "+script+".2 \"$@\"\n"), 0o755))
			must(t, os.WriteFile(script+".2", []byte(text), 0o755))
			if said := sh(t, `"$1" check -c "$2"`, script, p.MountConfig()); !strings.Contains(said, "mount: capture: daemon (") || !strings.Contains(said, c.why) {
				t.Errorf("check says %q, want %q in it", said, c.why)
			}
			r, err := rig.Start(script, "mount", p.MountConfig(), p.Log)
			must(t, err)
			t.Cleanup(func() { _ = r.Kill() })
			if c.refused != "" {
				if code(t, r, 1); !strings.Contains(strings.Join(r.Log(), "\n"), c.refused) {
					t.Errorf("it says %q, want %q in it", r.Log(), c.refused)
				}
				return
			}
			must(t, r.Ready(t.Context()))
			if got, why := r.ReadyAttr("capture"), r.ReadyAttr("why"); got != "daemon" || !strings.Contains(why, c.why) {
				t.Errorf("the ready line says %q, why %q, want daemon and %q", got, why, c.why)
			}
			must(t, r.Stop(patience))
		})
	}
}

// The next worker may not have what its predecessor had. Its ready line does not hide that
// the kernel goes on writing to what is open.
func TestAWorkerWithoutPassthroughSaysWhatIsStillOpen(t *testing.T) {
	needRoot(t)
	c := captures[0]
	p := c.pair(t)
	startReceive(t, p)
	startMount(t, p, "FTFUSE_FAILPOINTS=kernel/no-passthrough=error#2")
	c.check(t, p)
	f, err := os.OpenFile(p.In("a.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	must(t, err)
	defer f.Close()
	killWorker(t, p)
	if got, still := p.MountRole.ReadyAttr("capture"), p.MountRole.ReadyAttr("still_passthrough"); got != "daemon" || still != "1" {
		t.Errorf("the ready line says %q and that %q files are still the kernel's, want daemon and 1", got, still)
	}
	_, err = f.WriteString("a line\n")
	must(t, err)
	must(t, f.Close())
	stop(t, p)
	same(t, p.Out("a.log"), []byte("a line\n"))
}
