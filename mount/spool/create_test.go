package spool

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAFileWasMadeForAProgramThatGotAnError: the daemon had no descriptor left to open it with, after
// it had its name. Whoever makes a lock file so (O_EXCL) then found it held, by nobody.
func TestAFileWasMadeForAProgramThatGotAnError(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	there := func(name string) bool {
		_, err := os.Lstat(filepath.Join(dir, "tree", name))
		return err == nil
	}
	for tries := 0; ; tries++ {
		if there("lock") {
			if err := s.Unlink("lock"); err != nil {
				t.Fatal(err)
			}
		}
		s.mu.Lock()
		before := s.numbers.next
		made := make(chan error, 1)
		go func() {
			f, err := s.Create("lock", 0o644, 0, 0)
			if err == nil {
				f.Release()
			}
			made <- err
		}()
		for s.numbers.next == before {
			s.mu.Unlock()
			s.mu.Lock()
		}
		for made := false; !made; { // it stops at s.mu next
			_, err := s.StatFile(Number(before))
			made = err == nil
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		late := len(s.files)+len(made) > 0 // it was faster than this goroutine
		s.mu.Unlock()
		err := <-made
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
		if late && tries < 1000 {
			continue
		}
		if err != nil && there("lock") {
			t.Errorf("%v, and the file is there", err)
		}
		return
	}
}
