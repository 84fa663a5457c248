package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ftfuse/config"
)

// TestCaptureInForce: what `ftfuse check` says is what the mount's ready line says.
func TestCaptureInForce(t *testing.T) {
	needPassthrough(t)
	const rule = "[[mount.rule]]\npath = %q\nattribution = %q\n"
	for _, c := range []struct {
		name, extra, want string
		old               bool // the kernel offers no passthrough
		overlay           bool // below the state directory
	}{
		{name: "plain", want: "passthrough"},
		{name: "an old kernel", want: "has no FUSE passthrough", old: true},
		{name: "sync", extra: "[mount.queue]\ndurability = \"sync\"\n", want: "durability"},
		{name: "error", extra: "[mount.queue]\non_full = \"error\"\n", want: "file system of its own"},
		{name: "drop", extra: "[mount.queue]\non_full = \"drop_oldest\"\n", want: "passthrough"},
		{name: "one rule says write", extra: fmt.Sprintf(rule, "a/**", "write"), want: "passthrough"},
		{name: "all rules say write", extra: fmt.Sprintf(rule+rule, "a/**", "write", "**", "write"), want: "every rule"},
		{name: "a container", want: "overlayfs", overlay: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			r := newRigStopped(t, c.extra)
			if c.overlay {
				overlay(t, filepath.Join(r.dir, "state"))
			}
			if c.old {
				r.env = []string{"FTFUSE_FAILPOINTS=kernel/no-passthrough=error"}
			}
			r.start()
			if !c.old { // this process has no failpoint
				cfg, err := config.Load(filepath.Join(r.dir, "a.toml"))
				if err != nil {
					t.Fatal(err)
				}
				if got := Capture(cfg); !strings.Contains(got, c.want) || (got == "passthrough") != (c.want == "passthrough") {
					t.Errorf("check says %q, want %q in it", got, c.want)
				}
			}
			want := "capture=passthrough"
			if c.want != "passthrough" {
				want = "capture=daemon"
			}
			if !r.logged(want) || !r.logged(c.want) {
				t.Errorf("the log does not say %q and %q", want, c.want)
			}
			r.stop()
		})
	}
}

// overlay mounts an overlayfs on dir.
func overlay(t *testing.T, dir string) {
	t.Helper()
	base := t.TempDir()
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(base, unix.MNT_DETACH) })
	for _, sub := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(base, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	opts := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", base, base, base)
	if err := unix.Mount("overlay", dir, "overlay", 0, opts); err != nil {
		t.Skip("no overlayfs here: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}
