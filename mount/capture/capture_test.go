package capture

import (
	"testing"
)

func TestLinesOfOneWriter(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a.log")
	r.write(h, "one\n")
	r.write(h, "two\nthr")
	r.write(h, "ee\nfour\n")
	r.drain()
	r.want("a.log", "one\ntwo\nthree\nfour\n")
	r.restart()
	r.want("a.log", "one\ntwo\nthree\nfour\n")
}
