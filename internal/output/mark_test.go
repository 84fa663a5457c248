package output

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"testing"
)

// TestMarksAreOfAFileUnderItsName: a file that is renamed, copied or replaced since is none that
// was rotated, and who has the name of one by chance is not, either.
func TestMarksAreOfAFileUnderItsName(t *testing.T) {
	eachRoot(t, func(t *testing.T, r *Root) {
		ids := map[string]ID{}
		for _, name := range []string{"d/f.000001", "d/f.000002.gz", "d/f.000003.zst", "d/f.000004", "d/f.000005", "d/other.000009"} {
			f := write(t, r, name, "x")
			ids[name] = f.ID()
			f.Close()
		}
		for _, name := range []string{"d/f.000001", "d/f.000002.gz", "d/f.000003.zst", "d/other.000009"} {
			for i, want := range []bool{true, false} {
				if fresh, err := r.Mark(name, ids[name]); err != nil || fresh != want {
					t.Fatalf("mark %s, call %d: %v, %v", name, i+1, fresh, err)
				}
			}
		}
		if _, err := r.Mark("d/f.000004", ids["d/f.000001"]); !errors.Is(err, ErrGone) {
			t.Errorf("mark another file: %v", err)
		}
		if _, err := r.Mark("d/none.000001", ids["d/f.000001"]); !errors.Is(err, ErrGone) {
			t.Errorf("mark no file: %v", err)
		}
		must(t, os.Rename(r.Path("d/f.000001"), r.Path("d/f.000006")))
		if out, err := exec.Command("cp", "-a", r.Path("d/f.000003.zst"), r.Path("d/f.000007.zst")).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
		all, err := r.MarkedBeside("d/f", 6)
		must(t, err)
		slices.SortFunc(all, func(a, b Marked) int { return int(a.Number) - int(b.Number) })
		want := []Marked{{2, ".gz", ids["d/f.000002.gz"]}, {3, ".zst", ids["d/f.000003.zst"]}}
		if !slices.Equal(all, want) {
			t.Errorf("marked are %+v, want %+v", all, want)
		}
	})
}
