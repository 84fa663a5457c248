package output

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func ptr(n uint32) *uint32 { return &n }

// owned is the mode, owner and group of what is at path.
func owned(t *testing.T, path string) (mode, uid, gid uint32) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Mode & 0o7777, st.Uid, st.Gid
}

// TestWhatIsMadeIsGivenAway: files and directories get exactly what Perm says, whatever the
// umask and the directory they are in; what was there keeps what it has.
func TestWhatIsMadeIsGivenAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it gives files away")
	}
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	dir := filepath.Join(t.TempDir(), "made", "root")
	p := Perm{Mode: ptr(0o664), DirMode: ptr(0o2775), UID: ptr(12), GID: ptr(34)}
	r, err := OpenRoot(dir, Options{Perm: p})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := os.WriteFile(filepath.Join(dir, "there"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/b/f", "g", "there"} {
		f, err := r.OpenAs(name, &p)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	for name, want := range map[string][3]uint32{
		"..": {0o2775, 12, 34}, ".": {0o2775, 12, 34}, "a": {0o2775, 12, 34}, "a/b": {0o2775, 12, 34},
		"a/b/f": {0o664, 12, 34}, "g": {0o664, 12, 34}, "there": {0o600, 0, 34},
	} {
		mode, uid, gid := owned(t, filepath.Join(dir, name))
		if [3]uint32{mode, uid, gid} != want {
			t.Errorf("%s has mode %04o of %d:%d, want %04o of %d:%d", name, mode, uid, gid, want[0], want[1], want[2])
		}
	}
}

// TestWhatAKillLeftHalfMadeIsFinished: a file or a directory that was made and not given away.
func TestWhatAKillLeftHalfMadeIsFinished(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it gives files away")
	}
	dir := t.TempDir()
	p := Perm{Mode: ptr(0o640), DirMode: ptr(0o750), GID: ptr(34)}
	r, err := OpenRoot(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := unix.Mkdir(filepath.Join(dir, "d"), rawDir); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(filepath.Join(dir, "f"), unix.O_CREAT|unix.O_WRONLY, rawFile)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	for _, name := range []string{"f", "d/f"} {
		f, err := r.OpenAs(name, &p)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	for name, want := range map[string]uint32{"f": 0o640, "d": 0o750, "d/f": 0o640} {
		if mode, _, gid := owned(t, filepath.Join(dir, name)); mode != want || gid != 34 {
			t.Errorf("%s has mode %04o of group %d, want %04o of 34", name, mode, gid, want)
		}
	}
}
