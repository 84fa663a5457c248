package receive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"ftfuse/config"
	"ftfuse/queue"
)

// TestRepairedQueueIsRedoneOnce: one of the two meta pages of the queue's newest segment is
// damaged while batches wait to be written. After `ftfuse queue repair` what the queue kept
// stands once, new batches follow, and the note is gone.
func TestRepairedQueueIsRedoneOnce(t *testing.T) {
	for page := range 2 {
		t.Run(fmt.Sprint(page), func(t *testing.T) {
			s := newSetup(t)
			f := newFeeder(1)
			f.connect(t, s.Listen)
			r := &rotation{t: t, s: s, f: f}
			p := spawn(t, s, "receive/applied=kill@30")
			r.lines(60, false)
			p.gone()
			dir := s.config().QueueDir(config.RoleReceive)
			segs, err := filepath.Glob(dir + "/*.seg")
			must(t, err)
			seg, err := os.OpenFile(segs[len(segs)-1], os.O_RDWR, 0)
			must(t, err)
			head := make([]byte, 32) // bbolt's page header, then magic, version, page size
			_, err = seg.ReadAt(head, 0)
			must(t, err)
			_, err = seg.WriteAt([]byte("damage"), int64(page)*int64(binary.LittleEndian.Uint32(head[24:]))+16)
			must(t, errors.Join(err, seg.Close()))
			if err := RunWith(t.Context(), s.config(), testLogger(t), s.options()); !errors.Is(err, queue.ErrNewestDamaged) {
				t.Fatalf("a start with a damaged queue: %v", err)
			}
			rep, err := queue.Repair(dir)
			must(t, err)
			if rep.Repair == nil {
				t.Fatal("repair did nothing")
			}
			r.x = start(t, s)
			r.lines(10, false)
			f.until(t, "acks", f.allAcked)
			last := fmt.Sprintf("line %08d\n", r.n-1)
			waitFor(t, "the newest line", func() bool { return countLinesIn(t, r.path())[last] > 0 })
			lost := 0
			got := countLinesIn(t, r.path())
			for i := range r.n {
				line := fmt.Sprintf("line %08d\n", i)
				if got[line] > 1 {
					t.Errorf("%q stands %d times", line, got[line])
				}
				if got[line] == 0 {
					lost++
				}
				delete(got, line)
			}
			if len(got) > 0 || lost > 30 {
				t.Errorf("%d lines of the last commit are lost; foreign: %v", lost, got)
			}
			t.Logf("%d lines lost with the last commit", lost)
			if _, ok := r.x.r.q.Get(queue.RepairedKey); ok {
				t.Error("the note of the repair is still there")
			}
			r.x.end()
		})
	}
}
