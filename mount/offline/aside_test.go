package offline

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/internal/failpoint"
)

// put renames a file that has data over name.
func (r *rig) put(name, data string) {
	r.Helper()
	from := filepath.Join(r.TempDir(), "new")
	r.must(os.WriteFile(from, []byte(data), 0o644))
	r.must(os.Rename(from, filepath.Join(r.dir, name)))
}

// isEmpty checks that nothing is left of any file, whatever it is called.
func (r *rig) isEmpty() {
	r.Helper()
	r.until("nothing is left", func() bool {
		left := 0
		r.must(filepath.WalkDir(r.dir, func(_ string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				left++
			}
			return nil
		}))
		return left == 0
	})
}

// pass is a pass that a failpoint may end.
func (r *rig) pass() {
	if err := r.t.pass(r.Context()); err != nil && !errors.Is(err, failpoint.ErrInjected) {
		r.Error(err)
	}
}

// While a file that was taken in is removed, somebody renames another one over its name: that
// one was removed, and nobody had read it.
func TestAFileThatIsRenamedOverOneThatIsRemovedIsTaken(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(r *rig)
		want map[string]string
	}{
		"renamed over": {func(r *rig) { r.put("a.log", "another\n") }, map[string]string{"a.log": "one\nanother\n"}},
		"removed":      {func(r *rig) { r.must(os.Remove(filepath.Join(r.dir, "a.log"))) }, map[string]string{"a.log": "one\n"}},
		"renamed":      {func(r *rig) { r.must(os.Rename(filepath.Join(r.dir, "a.log"), filepath.Join(r.dir, "b.log"))) }, map[string]string{"a.log": "one\n"}},
		"a directory": {func(r *rig) {
			r.must(os.Remove(filepath.Join(r.dir, "a.log")))
			r.must(os.Mkdir(filepath.Join(r.dir, "a.log"), 0o755))
			r.write("a.log/b.log", "two\n").Close()
		}, map[string]string{"a.log": "one\n", "a.log/b.log": "two\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{})
			r.write("a.log", "one\n").Close()
			r.t.Serving()
			r.at("offline/looked", r.pass, func() { tc.do(r) })
			r.run()
			for path, want := range tc.want {
				r.until(path+" is taken", func() bool { return len(r.m.got(path)) >= len(want) })
				r.want(path, want)
			}
			r.isEmpty()
		})
	}
}

// The same, and before it is put back its name is taken again: both are taken, in order.
func TestAFileWhoseNameIsTakenWhileItIsSetAsideIsTakenFirst(t *testing.T) {
	r := newRig(t, Options{})
	r.write("a.log", "one\n").Close()
	r.t.Serving()
	open := r.write("new", "another\nno ")
	r.at("offline/looked", func() {
		r.at("offline/foreign", r.pass, func() { r.write("a.log", "third\n").Close() })
	}, func() { r.must(os.Rename(filepath.Join(r.dir, "new"), filepath.Join(r.dir, "a.log"))) })
	r.run()
	r.until("the third is taken", func() bool { return strings.HasSuffix(r.m.got("a.log"), "third\n") })
	r.want("a.log", "one\nanother\nno third\n")
	_, err := open.WriteString("end\n")
	r.must(err)
	r.until("what is written to one that is set aside is taken", func() bool { return strings.HasSuffix(r.m.got("a.log"), "third\nend\n") })
	if !r.there(aside + "a.log") {
		t.Error("removed while it is open for writing")
	}
	r.must(open.Close())
	r.isEmpty()
	r.want("a.log", "one\nanother\nno third\nend\n")
}

// The process dies with a file set aside: the next one takes it under its own path, whether it
// was taken already or not, and whether its name is taken by now or not.
func TestWhatAKillLeavesAsideIsTakenOnceUnderItsPath(t *testing.T) {
	for name, tc := range map[string]struct {
		step        string
		over, later string
		rest        string
	}{
		"the file itself":             {step: "offline/aside"},
		"and its name is taken":       {step: "offline/aside", later: "later\n", rest: "later\n"},
		"another, not looked at":      {step: "offline/aside", over: "another\n", rest: "another\n"},
		"another, not put back":       {step: "offline/foreign", over: "another\n", rest: "another\n"},
		"another whose name is taken": {step: "offline/foreign", over: "another\n", later: "later\n", rest: "another\nlater\n"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{Matches: func(path string) bool { return path == "dir/a.log" }})
			r.must(os.Mkdir(filepath.Join(r.dir, "dir"), 0o755))
			r.write("dir/a.log", "one\n").Close()
			r.t.Serving()
			r.must(failpoint.Set(tc.step, "error"))
			defer failpoint.Clear(tc.step)
			r.at("offline/looked", r.pass, func() {
				if tc.over != "" {
					r.put("dir/a.log", tc.over)
				}
			})
			failpoint.Clear(tc.step)
			if !r.there("dir/" + aside + "a.log") {
				t.Fatal("nothing is set aside")
			}
			if tc.later != "" {
				r.write("dir/a.log", tc.later).Close()
			}
			r.must(r.t.Close())
			r.open(Options{})
			r.must(r.t.TakeAll(t.Context()))
			r.want("dir/a.log", "one\n"+tc.rest)
			if !r.there("dir/a.log") {
				t.Error("it has not got its name back")
			}
			r.run()
			r.isEmpty()
			r.want("dir/a.log", "one\n"+tc.rest)
		})
	}
}
