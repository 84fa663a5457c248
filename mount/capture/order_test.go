package capture

import (
	"fmt"
	"strings"
	"testing"
)

// A log is rotated under load: the records of the new file stood among those of the old
// one, which have the same path, since files took turns.
func TestNewFileOfAPathComesAfterTheOldOne(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	r.must(r.c.Recover(r.ctx(), nil))
	var want strings.Builder
	block := strings.Repeat("0123456789abcde\n", 1<<12)
	for gen := range 4 { // before Run: all of it waits at once
		h := r.writer("a.log")
		for i := range 20 {
			text := block
			if i == 19 {
				text = fmt.Sprintf("end of file %d\n", gen)
			}
			r.write(h, text)
			want.WriteString(text)
		}
		h.End(r.meta())
		r.must(r.s.Rename("a.log", fmt.Sprintf("a.log.%d", gen)))
		delete(r.files, "a.log")
		r.write(r.writer("other"), "other\n")
	}
	r.run()
	r.drain()
	r.want("a.log", want.String())
}

// fsync(2) of the new file cut it alone, ahead of what the old one still had.
func TestDrainOfANewFileTakesTheOldOneAlong(t *testing.T) {
	r := newRig(t, Options{})
	r.open()
	r.must(r.c.Recover(r.ctx(), nil))
	old := r.writer("a.log")
	r.write(old, "old\n")
	r.must(r.s.Rename("a.log", "a.log.1"))
	delete(r.files, "a.log")
	now := r.writer("a.log")
	r.write(now, "new\n")
	r.write(old, "old again\n")
	done := make(chan error, 1)
	go func() { done <- r.c.Drain(r.ctx(), now.Number()) }()
	r.waitFor("the request", func() bool { r.c.mu.Lock(); defer r.c.mu.Unlock(); return len(r.c.requests) > 0 })
	r.run()
	r.must(<-done)
	r.drain()
	r.want("a.log", "old\nnew\nold again\n")
}
