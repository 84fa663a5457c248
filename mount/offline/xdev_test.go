package offline

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A file or directory of the same file system that is mounted on a name below the mount point
// (mount --bind) lies elsewhere: it was taken in, and its bytes punched out.
func TestWhatIsMountedBelowTheMountPointIsLeft(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	for name, call := range map[string]func(int, string, *unix.OpenHow) (int, error){
		"openat2":             unix.Openat2,
		"a kernel before 5.6": func(int, string, *unix.OpenHow) (int, error) { return -1, unix.ENOSYS },
	} {
		t.Run(name, func(t *testing.T) {
			openat2 = call
			defer func() { openat2 = unix.Openat2 }()
			leavesWhatIsMounted(t)
		})
	}
}

func leavesWhatIsMounted(t *testing.T) {
	r := newRig(t, Options{})
	r.write("own.log", "own\n").Close()
	elsewhere := t.TempDir()
	data := bytes.Repeat([]byte("a line of text\n"), 10_000)
	r.must(os.WriteFile(filepath.Join(elsewhere, "file"), data, 0o644))
	bind := func(what, name string) {
		t.Helper()
		at := filepath.Join(r.dir, name)
		r.must(unix.Mount(what, at, "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
	r.write("a.log", "").Close()
	bind(filepath.Join(elsewhere, "file"), "a.log")
	r.must(os.Mkdir(filepath.Join(r.dir, "dir"), 0o755))
	bind(elsewhere, "dir")
	r.must(r.t.TakeAll(t.Context()))
	r.must(r.t.one(t.Context(), "a.log"))
	r.must(r.t.one(t.Context(), "dir/file"))
	r.want("own.log", "own\n")
	if n := r.m.files(); n != 1 {
		t.Errorf("%d files are taken in, want own.log alone", n)
	}
	if got, err := os.ReadFile(filepath.Join(elsewhere, "file")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the file that is mounted there is changed (%v)", err)
	}
}
