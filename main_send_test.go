package main

import (
	"strings"
	"testing"
	"time"
)

func TestTheBarSaysHowFarASendingIs(t *testing.T) {
	var out strings.Builder
	at := time.Unix(0, 0)
	b := newBar(&out, "app.log")
	b.now = func() time.Time { return at }
	b.show(1<<20, 5<<20) // a mebibyte was sent before
	at = at.Add(50 * time.Millisecond)
	b.show(2<<20, 5<<20) // too soon to be drawn
	at = at.Add(950 * time.Millisecond)
	b.show(3<<20, 5<<20)
	b.end()
	want := "\r\x1b[Kapp.log  [====                    ]  20 %  1.0 MiB of 5.0 MiB" +
		"\r\x1b[Kapp.log  [==============          ]  60 %  3.0 MiB of 5.0 MiB  2.0 MiB/s  1s" +
		"\r\x1b[Kapp.log  [==============          ]  60 %  3.0 MiB of 5.0 MiB  2.0 MiB/s  1s\n"
	if out.String() != want {
		t.Errorf("drawn:\n%q, want\n%q", out.String(), want)
	}
	s := newBar(&out, "standard input")
	s.now = b.now
	s.show(0, -1)
	at = at.Add(time.Second)
	s.show(1536, -1)
	if got := s.line(); got != "standard input  1.5 KiB  1.5 KiB/s" {
		t.Errorf("of a stream: %q", got)
	}
	newBar(&out, "empty").show(0, 0)
}
