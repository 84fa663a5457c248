package spool

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// deepNames makes directories in each other below path, of names with 200 bytes, until a path would be
// too long, each with a file.
func deepNames(t *testing.T, s *Store, path string) (files map[string]bool) {
	t.Helper()
	files = map[string]bool{}
	for {
		if path += "/" + strings.Repeat("d", 200); len(path)+2 > MaxPath {
			return files
		}
		if err := s.Mkdir(path, 0o755, 0, 0); err != nil {
			t.Fatal(err)
		}
		f, err := s.Create(path+"/f", 0o644, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Release()
		files[path+"/f"] = true
	}
}

func foundPaths(s *Store) map[string]bool {
	all := map[string]bool{}
	_ = s.Files(func(i FileInfo) bool {
		all[i.Path] = true
		return true
	})
	return all
}

// TestAFolderWasRenamedSoThatNoStartCouldReadTheNames: the names below it then had paths of more
// than MaxPath bytes, which nobody could reach, and the next start failed with ENAMETOOLONG.
func TestAFolderWasRenamedSoThatNoStartCouldReadTheNames(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	for _, name := range []string{"a", "short"} {
		if err := s.Mkdir(name, 0o755, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	want := deepNames(t, s, "a")
	if err := s.Rename("a", strings.Repeat("b", 200)); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a folder with long paths gets a long name: %v, want ENAMETOOLONG", err)
	}
	if err := s.Rename("short", strings.Repeat("c", 200)); err != nil {
		t.Errorf("a folder without long paths gets a long name: %v", err)
	}
	if err := s.Rename("a", "b"); err != nil {
		t.Error(err)
	}
	if err := s.Rename("b", "a"); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := foundPaths(open(t, dir, Options{})); !maps.Equal(got, want) {
		t.Errorf("found %d files, want %d", len(got), len(want))
	}
}

// TestLongNamesBelowALongStateDirKeptTheNextStartFromReadingThem: the paths of the tree of names
// were taken from the root of the file system, where they are longer than PATH_MAX.
func TestLongNamesBelowALongStateDirKeptTheNextStartFromReadingThem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("s", 200))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, Options{})
	if err := s.Mkdir("a", 0o755, 0, 0); err != nil {
		t.Fatal(err)
	}
	want := deepNames(t, s, "a")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := foundPaths(open(t, dir, Options{})); !maps.Equal(got, want) {
		t.Errorf("found %d files, want %d", len(got), len(want))
	}
}

// TestPathsThatAreTooLongAlreadyAreRead: they were made by an older version.
func TestPathsThatAreTooLongAlreadyAreRead(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	if err := s.Mkdir("a", 0o755, 0, 0); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	long := strings.Repeat("b", 255)
	for path := range deepNames(t, s, "a") {
		want[long+strings.TrimPrefix(path, "a")] = true
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "tree", "a"), filepath.Join(dir, "tree", long)); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	if got := foundPaths(s); !maps.Equal(got, want) {
		t.Errorf("found %d files, want %d", len(got), len(want))
	}
	if err := s.Rename(long, "a"); err != nil {
		t.Error(fmt.Errorf("make them shorter: %w", err))
	}
}

// TestDeepFoldersTookAllDescriptorsOfTheNextStart: it held one for each level, and whoever could make
// a few thousand folders in each other kept a mount with a low limit (ulimit -n) from starting.
func TestDeepFoldersTookAllDescriptorsOfTheNextStart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	path := "d"
	for ; len(path)+2 <= MaxPath; path += "/d" {
		if err := s.Mkdir(path, 0o755, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	f, err := s.Create(path[:len(path)-1]+"f", 0o644, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 200, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) }()
	if got := foundPaths(open(t, dir, Options{})); len(got) != 1 || !got[path[:len(path)-1]+"f"] {
		t.Errorf("found %d files, want one", len(got))
	}
}

// TestRenamesOfFoldersWalkedAllThatIsInThemForEver: the bound of the paths grew with every rename that
// made a name longer, and was never lower again, whatever became shorter or was removed.
func TestRenamesOfFoldersWalkedAllThatIsInThemForEver(t *testing.T) {
	for name, before := range map[string]func(*Store){
		"renamed again and again": func(*Store) {},
		"a deep folder was there": func(s *Store) {
			path := strings.Repeat("d", 200)
			var made []string
			for ; len(path) <= MaxPath; path += "/" + strings.Repeat("d", 200) {
				if err := s.Mkdir(path, 0o755, 0, 0); err != nil {
					t.Fatal(err)
				}
				made = append(made, path)
			}
			for i := range made {
				if err := s.Rmdir(made[len(made)-1-i]); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		s := open(t, t.TempDir(), Options{})
		before(s)
		if err := s.Mkdir("current", 0o755, 0, 0); err != nil {
			t.Fatal(err)
		}
		makeFile(t, s, "current/file")
		const longer = "current.before-this-one"
		walks := 0
		for range 1000 {
			if s.longest.Load()+int64(len(longer)-len("current")) > MaxPath {
				walks++
			}
			if err := errors.Join(s.Rename("current", longer), s.Rename(longer, "current")); err != nil {
				t.Fatal(err)
			}
		}
		if walks > 10 {
			t.Errorf("%s: %d of 1000 renames looked at all that is in the folder", name, walks)
		}
	}
}
