package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func init() { actors["rm"] = actRemove }

// actRemove removes PATH as user 65534 and says what came of it.
func actRemove(args []string) error {
	if err := syscall.Setuid(65534); err != nil {
		return err
	}
	fmt.Println(syscall.Unlink(args[0]))
	return nil
}

// TestStickyDirectoryKeepsStrangersFromRemoving: mode 1777 came out as 777, and anybody
// could remove anybody's files, as not in /tmp.
func TestStickyDirectoryKeepsStrangersFromRemoving(t *testing.T) {
	r := newRigStopped(t, "allow_other = true\n")
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, dir := range []string{r.dir, filepath.Dir(r.dir)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.start()
	for _, mode := range []os.FileMode{0o777, os.ModeSticky | 0o777} {
		dir := r.path(fmt.Sprintf("d%d", mode))
		if err := syscall.Mkdir(dir, unixMode(mode)); err != nil { // less umask
			t.Fatal(err)
		}
		if st, err := os.Stat(dir); err != nil || st.Mode()&os.ModeSticky != mode&os.ModeSticky {
			t.Fatalf("made with %v: %v, %v", mode, st, err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm()|st.Mode()&os.ModeSticky != mode || st.Sys().(*syscall.Stat_t).Nlink != 2 {
			t.Fatalf("after chmod %v: %+v, %v", mode, st, err)
		}
		if err := os.WriteFile(dir+"/f", []byte("x\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		want := "<nil>"
		if mode&os.ModeSticky != 0 {
			want = syscall.EPERM.Error()
		}
		if got := startActor(t, "rm", dir+"/f").next(); got != want {
			t.Errorf("a stranger removes a file in a directory of mode %v: %s, want %s", mode, got, want)
		}
	}
	r.stop()
}
