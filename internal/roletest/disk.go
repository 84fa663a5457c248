package roletest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// extShutdown is EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32); noLogFlush drops what the
// journal has not written yet (fs/ext4/ext4.h).
const (
	extShutdown = 0x8004587d
	noLogFlush  = 2
)

// SmallDisk mounts a tmpfs with options, as size=64k, until the end of the test, which is skipped
// where that cannot be (it needs root).
func SmallDisk(t testing.TB, options string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("mount a tmpfs: %v (needs root)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Disk is an ext4 of its own, which can lose power.
type Disk struct {
	Dir   string // where it is mounted
	image string
	t     testing.TB
}

// NewDisk makes and mounts a Disk of size bytes until the end of the test, which is skipped
// where that cannot be (it needs root and loop devices).
func NewDisk(t testing.TB, size int64) *Disk {
	t.Helper()
	d := &Disk{t: t, image: filepath.Join(t.TempDir(), "image"), Dir: filepath.Join(t.TempDir(), "disk")}
	d.must(os.Mkdir(d.Dir, 0o755))
	d.must(os.WriteFile(d.image, nil, 0o600))
	d.must(os.Truncate(d.image, size))
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", d.image}, {"mount", "-o", "loop", d.image, d.Dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%v: %v %s", args, err, out)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(d.Dir, unix.MNT_DETACH) })
	return d
}

func (d *Disk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// LosePower stops the file system at once: what was not synced is gone.
func (d *Disk) LosePower() {
	d.t.Helper()
	f, err := os.Open(d.Dir)
	d.must(err)
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), extShutdown, noLogFlush); err != nil {
		d.t.Skipf("shut the file system down: %v", err)
	}
}

// Restore mounts the file system again, as after the power came back. Nobody may have a file
// of it open.
func (d *Disk) Restore() {
	d.t.Helper()
	for _, args := range [][]string{{"umount", d.Dir}, {"mount", "-o", "loop", d.image, d.Dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			d.t.Fatalf("%v: %v %s", args, err, out)
		}
	}
}
