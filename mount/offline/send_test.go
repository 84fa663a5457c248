package offline

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"ftfuse/mount/capture"
	"ftfuse/queue"
)

// local is a Local over memory that transfers everything, and whose queue has room.
func local() (*Local, *memory) {
	m := newMemory()
	return &Local{
		Capture: m,
		Matches: func(string) bool { return true },
		Room:    func() bool { return true },
		Wait:    func(context.Context) error { return ErrNoRoom },
	}, m
}

// Two MiB at once went into a queue that keeps a smaller part of its room for others, and
// waited there for room that nobody made.
func TestSentBytesAreFedInPiecesForWhichThereIsRoom(t *testing.T) {
	l, m := local()
	l.Chunk = 1000
	room := 3
	l.Room = func() bool { room--; return room >= 0 }
	b, err := l.Begin(t.Context(), Request{Path: "a.log"})
	if err != nil {
		t.Fatal(err)
	}
	data := []byte(strings.Repeat("a line of text\n", 400))
	if err := l.Data(t.Context(), b.ID, 0, data, capture.Fed{}); !errors.Is(err, ErrNoRoom) || len(m.got("a.log")) != 3000 {
		t.Fatalf("%d bytes taken (%v), want the 3000 that there was room for", len(m.got("a.log")), err)
	}
	room = 100
	if err := l.Data(t.Context(), b.ID, 3000, data[3000:], capture.Fed{}); err != nil || m.got("a.log") != string(data) {
		t.Errorf("got %d bytes of %d: %v", len(m.got("a.log")), len(data), err)
	}
}

// A queue that refuses instead of blocking failed the start, and later the role.
func TestAQueueThatRefusesHasNoRoom(t *testing.T) {
	r := newRig(t, Options{})
	r.write("a.log", "one\n").Close()
	r.m.set(func() { r.m.unfed = fmt.Errorf("submit: %w", queue.ErrFull) })
	if err := r.t.TakeAll(r.Context()); !errors.Is(err, ErrNoRoom) {
		t.Fatalf("got %v, want no room", err)
	}
	r.run()
	r.m.set(func() { r.m.unfed = nil })
	r.until("it is taken and removed", func() bool { return r.m.got("a.log") == "one\n" && !r.there("a.log") })
}

// Rules that came into force while a file was sent made its bytes count as sent.
func TestSendIsToldThatThePathIsNotTransferredAnyMore(t *testing.T) {
	l, m := local()
	b, err := l.Begin(t.Context(), Request{Path: "a.log"})
	if err != nil {
		t.Fatal(err)
	}
	m.skip = "a.log"
	if err := l.Data(t.Context(), b.ID, 0, []byte("one\n"), capture.Fed{}); !errors.Is(err, ErrPath) {
		t.Errorf("got %v, want %v", err, ErrPath)
	}
}
