package capture

import (
	"maps"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ftfuse/queue"
)

// repaired makes the queue's state the older one, as `ftfuse queue repair` leaves it.
func (r *rig) repaired(state map[string][]byte) {
	r.Helper()
	r.q.set(func() {
		r.q.disk = maps.Clone(state)
		r.q.disk[queue.RepairedKey] = []byte(`{"StateFrom":"a test","StateSeq":1,"NewestSeq":3}`)
	})
}

func (r *rig) state() (state map[string][]byte) {
	r.q.set(func() { state = maps.Clone(r.q.disk) })
	return state
}

// TestRepairedQueueCapturesNoPunchedBytes: the state that a repair goes on from is from
// before some commits, and what they committed was punched out of the spool since. The
// position moves past that; what is left is captured again and counted; the note goes.
func TestRepairedQueueCapturesNoPunchedBytes(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "one\nbegun")
	r.drain()
	older := r.state()
	n := h.Number()
	r.write(h, strings.Repeat("x", 3*4096)+"\ntwo\n")
	r.drain()
	r.holdBack()
	r.write(h, "three\n")
	r.crash()
	f, err := os.OpenFile(r.spoolFile(n), os.O_RDWR, 0)
	r.must(err)
	r.must(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 2*4096))
	r.must(f.Close())
	r.repaired(older)
	r.q.reopen()
	r.start()
	tail := strings.Repeat("x", 4096+9) + "\ntwo\n"
	got := r.output("a")
	if strings.Contains(got, "\x00") {
		t.Errorf("what was punched out is delivered as zeros")
	}
	if want := "begun" + strings.Repeat("x", 3*4096) + "\ntwo\n"; !strings.HasPrefix(got, "one\n"+want) {
		t.Errorf("what was delivered before changed: %.40q", got)
	} else if rest := strings.TrimPrefix(got, "one\n"+want); rest != "begun\n"+tail+"three\n" {
		t.Errorf("after the repair came %d bytes, %.60q", len(rest), rest)
	}
	if d := r.c.Stats().PossibleDoubles; d != uint64(len("begun"+tail+"three\n")) {
		t.Errorf("%d bytes are counted as possible doubles", d)
	}
	if _, ok := r.q.Get(queue.RepairedKey); ok {
		t.Error("the note of the repair is still there")
	}
	before := r.output("a")
	r.restart()
	r.want("a", before)
}

// TestRepairedQueueWithAPartOfALineStarts: of an unfinished line's values one could not be
// read. Without a repair that is an error; with it the role must start, and count.
func TestRepairedQueueWithAPartOfALineStarts(t *testing.T) {
	for _, gone := range []string{"/h", "/0000000000000000"} {
		r := newRig(t, Options{})
		r.start()
		h := r.writer("a")
		r.write(h, strings.Repeat("y", 3*pendChunk))
		r.drain()
		state := r.state()
		n := len(state)
		maps.DeleteFunc(state, func(k string, _ []byte) bool {
			return strings.HasPrefix(k, prefixPend) && strings.HasSuffix(k, gone)
		})
		if len(state) != n-1 {
			t.Fatalf("%d values end in %s", n-len(state), gone)
		}
		r.write(h, "end\nnext\n")
		r.drain()
		r.crash()
		r.repaired(state)
		r.q.reopen()
		r.start()
		if s := r.c.Stats(); s.LostPending == 0 {
			t.Errorf("without %s: %+v", gone, s)
		}
		if !strings.HasSuffix(r.output("a"), "end\nnext\nend\nnext\n") {
			t.Errorf("without %s: the rest of the file did not come again", gone)
		}
		for k := range r.state() {
			if strings.HasPrefix(k, prefixPend) {
				t.Errorf("%s is left", k)
			}
		}
		r.crash()
	}
}
