package offline

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
)

// at has do done when the Taker comes to the step called name, in which it stands still meanwhile.
func (r *rig) at(name string, pass, do func()) {
	r.Helper()
	p := points[name]
	r.must(failpoint.Set(name, "pause"))
	defer failpoint.Clear(name)
	done := make(chan struct{})
	go func() {
		defer close(done)
		pass()
	}()
	r.until("the Taker is at "+name, func() bool { return p.Hits() > 0 })
	do()
	failpoint.Clear(name)
	<-done
}

// points are those at which a test writes.
var points = map[string]*failpoint.Point{"offline/whole": fpWhole, "offline/looked": fpLooked, "offline/foreign": fpForeign, "offline/punching": fpPunching}

// Between the last read of a file and the answer that nobody writes to it somebody did, and has
// closed it: its unfinished line was ended in the middle, and what a file of the same size had
// that was written anew was removed unread.
func TestWhatIsWrittenAfterTheLastReadIsTaken(t *testing.T) {
	for name, tc := range writtenLate {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{})
			r.write("a.log", lateFirst).Close()
			r.t.Serving()
			r.at("offline/whole", func() {
				if err := r.t.pass(t.Context()); err != nil {
					t.Error(err)
				}
			}, func() { r.writeLate(tc.flags, tc.data) })
			if n := r.m.ends["a.log"]; n != 0 {
				t.Errorf("%d lines were ended of a file that is not taken to its end", n)
			}
			r.isTakenAndRemoved(tc.want)
		})
	}
}

// The same, while its line is ended: then nobody writes to it, for all that is known.
func TestWhatIsWrittenBeforeTheRemovalIsTaken(t *testing.T) {
	for name, tc := range writtenLate {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{})
			r.write("a.log", lateFirst).Close()
			r.t.Serving()
			r.m.ending = func() { r.writeLate(tc.flags, tc.data) }
			r.must(r.t.pass(t.Context()))
			r.isTakenAndRemoved(tc.want)
		})
	}
}

const lateFirst = "the first line\nno end"

// writtenLate is what somebody does to a file that has lateFirst, and what is taken in all.
var writtenLate = map[string]struct {
	flags int
	data  string
	want  string
}{
	"appended":                   {os.O_APPEND, " of it\n", lateFirst + " of it\n"},
	"written anew, as long":      {os.O_TRUNC, "another text, no end."[:len(lateFirst)], lateFirst + "another text, no end."},
	"written anew, and longer":   {os.O_TRUNC, "another text, which is longer\n", lateFirst + "another text, which is longer\n"},
	"written anew, and shorter":  {os.O_TRUNC, "another\n", lateFirst + "another\n"},
	"truncated, and not written": {os.O_TRUNC, "", lateFirst},
}

func (r *rig) writeLate(flags int, data string) {
	r.Helper()
	f, err := os.OpenFile(filepath.Join(r.dir, "a.log"), os.O_WRONLY|flags, 0)
	r.must(err)
	_, err = f.WriteString(data)
	r.must(err)
	r.must(f.Close())
}

func (r *rig) isTakenAndRemoved(want string) {
	r.Helper()
	if !r.there("a.log") {
		r.Error("removed, and not all of it is taken")
	}
	r.run()
	r.until("it is taken and removed", func() bool { return !r.there("a.log") })
	r.want("a.log", want)
}

// The file system fails while a file is removed, after it was taken: the mount ended.
func TestAFileThatCannotBeRemovedDoesNotEndTheMount(t *testing.T) {
	r := newRig(t, Options{})
	r.write("a.log", "one\n").Close()
	r.write("b.log", "two\n").Close()
	r.t.Serving()
	r.m.ending = func() { // no lease, no size: a pipe stands in for a file whose server is gone
		fds, err := os.ReadDir("/proc/self/fd")
		r.must(err)
		var pipe [2]int
		r.must(unix.Pipe2(pipe[:], unix.O_CLOEXEC))
		defer unix.Close(pipe[0])
		defer unix.Close(pipe[1])
		for _, e := range fds {
			if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); to == filepath.Join(r.dir, "a.log") {
				fd, err := strconv.Atoi(e.Name())
				r.must(err)
				r.must(unix.Dup3(pipe[0], fd, unix.O_CLOEXEC))
			}
		}
	}
	r.must(r.t.pass(t.Context()))
	if r.there("b.log") || !r.there("a.log") {
		t.Error("want b.log removed, a.log left")
	}
	r.must(r.t.pass(t.Context()))
	if r.there("a.log") {
		t.Error("not removed once that was over")
	}
	r.want("a.log", "one\n")
}
