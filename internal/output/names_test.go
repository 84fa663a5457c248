package output

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRenameAndRemoveTouchOneFileOnly: the one with the ID, and never in another's place.
func TestRenameAndRemoveTouchOneFileOnly(t *testing.T) {
	eachRoot(t, func(t *testing.T, r *Root) {
		f, other := write(t, r, "d/f", "one"), write(t, r, "d/g", "two")
		defer f.Close()
		defer other.Close()
		for what, err := range map[string]error{
			"rename of another":      r.Rename("d/g", "d/new", f.ID()),
			"rename of none":         r.Rename("d/none", "d/new", f.ID()),
			"removal of another":     r.Remove("d/g", f.ID()),
			"removal of none":        r.Remove("d/none", f.ID()),
			"removal without folder": r.Remove("no/f", f.ID()),
		} {
			if !errors.Is(err, ErrGone) {
				t.Errorf("%s: %v, want ErrGone", what, err)
			}
		}
		if err := r.Rename("d/f", "d/g", f.ID()); !errors.Is(err, unix.EEXIST) {
			t.Errorf("rename to a name that is taken: %v", err)
		}
		must(t, os.Symlink("g", r.Path("d/link")))
		if err := r.Rename("d/f", "d/link", f.ID()); !errors.Is(err, unix.EEXIST) {
			t.Errorf("rename to a link: %v", err)
		}
		if err := r.Remove("d/link", other.ID()); !errors.Is(err, ErrGone) {
			t.Errorf("removal of a link: %v", err)
		}
		must(t, r.Rename("d/f", "d/new", f.ID()))
		must(t, r.Remove("d/g", other.ID()))
		if got, err := os.ReadFile(r.Path("d/new")); err != nil || string(got) != "one" {
			t.Errorf("the renamed file has %q, %v", got, err)
		}
		if _, err := os.Stat(r.Path("d/g")); err == nil {
			t.Error("the removed file is there")
		}
		found, err := r.OpenID("d/f", f.ID())
		must(t, err)
		must(t, found.Close())
		must(t, r.SyncDirOf("d/new"))
		must(t, r.SyncDirs())
	})
}

// TestATempHasItsNameWhenItIsLinked, and before that none, with and without O_TMPFILE.
func TestATempHasItsNameWhenItIsLinked(t *testing.T) {
	for _, named := range []bool{false, true} {
		r, err := OpenRoot(t.TempDir(), Options{NoTmpfile: named})
		must(t, err)
		defer r.Close()
		write(t, r, "d/taken", "x").Close()
		lost, err := r.Temp("d/lost")
		must(t, err)
		_, err = lost.Write([]byte("never linked"))
		must(t, err)
		must(t, lost.Close())
		taken, err := r.Temp("d/taken")
		must(t, err)
		if err := taken.Link(); !errors.Is(err, unix.EEXIST) {
			t.Errorf("named %v: a name that is taken: %v", named, err)
		}
		must(t, taken.Close())
		good, err := r.Temp("d/good")
		must(t, err)
		_, err = good.Write([]byte("linked"))
		must(t, err)
		must(t, good.Sync())
		if _, err := os.Stat(r.Path("d/good")); err == nil {
			t.Errorf("named %v: it has its name before Link", named)
		}
		must(t, good.Link())
		id := good.ID()
		must(t, good.Close())
		if info, err := r.Stat("d/good"); err != nil || info.ID != id || info.Size != 6 {
			t.Errorf("named %v: %+v, %v, want %v", named, info, err, id)
		}
		entries, err := os.ReadDir(r.Path("d"))
		must(t, err)
		if len(entries) != 2 {
			t.Errorf("named %v: the directory has %v", named, entries)
		}
		if _, err := r.Temp("../d/x"); !errors.Is(err, ErrRefused) {
			t.Errorf("named %v: upwards: %v", named, err)
		}
	}
}

// TestHighestNumberBeside: of rotated names only, compressed or not.
func TestHighestNumberBeside(t *testing.T) {
	eachRoot(t, func(t *testing.T, r *Root) {
		for _, name := range []string{
			"d/app.log", "d/app.log.000009", "d/app.log.000012.zst", "d/app.log.20261123", "d/app.log.7", "d/app.log.1000000x",
			"d/app.log.00001a", "d/other.log.000050", "d/app.log.000013.gz.part", "app.log.000090",
		} {
			write(t, r, name, "x").Close()
		}
		if got, err := r.Highest("d/app.log", 6); err != nil || got != 13 {
			t.Errorf("highest is %d, %v, want 13", got, err)
		}
		write(t, r, "d/app.log.999999.gz", "x").Close()
		if got, err := r.Highest("d/app.log", 6); err != nil || got != 20261123 {
			t.Errorf("highest is %d, %v, want one with more digits", got, err)
		}
		if got, err := r.Highest("d/none", 6); err != nil || got != 0 {
			t.Errorf("highest of a name without any is %d, %v", got, err)
		}
	})
}
