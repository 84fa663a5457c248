package offline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

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

// begin begins a stream and fails the test where it cannot.
func begin(t *testing.T, l *Local, name string) Begun {
	t.Helper()
	b, err := l.Begin(t.Context(), Request{Path: "a.log", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (m *memory) knows(id uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sources[id].Kind != 0
}

// A stream that gave no byte for an hour was forgotten while its sender was there, and what
// it gave then went to another one's source, or nowhere. (The sources of memory were never
// seen, as after any time.)
func TestAStreamWhoseSenderIsThereIsNotForgotten(t *testing.T) {
	l, m := local()
	quiet := begin(t, l, AnonymousName("quiet"))
	gone := begin(t, l, AnonymousName("gone"))
	begin(t, l, AnonymousName("another"))
	if !m.knows(quiet.ID) || !m.knows(gone.ID) {
		t.Fatal("a stream of this process was forgotten")
	}
	restarted := &Local{Capture: m, Matches: l.Matches, Room: l.Room, Wait: l.Wait}
	if err := restarted.Data(t.Context(), quiet.ID, 0, nil, capture.Fed{}); err != nil { // it says that it is there
		t.Fatal(err)
	}
	begin(t, restarted, AnonymousName("a third"))
	if !m.knows(quiet.ID) || m.knows(gone.ID) {
		t.Errorf("known: %v of who is there, %v of who is gone", m.knows(quiet.ID), m.knows(gone.ID))
	}
}

// reminded is a Target that tells of each Data without bytes.
type reminded struct {
	Target
	ch chan struct{} // capacity 1
}

func (r *reminded) Data(ctx context.Context, id uint64, off int64, data []byte, by capture.Fed) error {
	if len(data) == 0 {
		select {
		case r.ch <- struct{}{}:
		default:
		}
	}
	return r.Target.Data(ctx, id, off, data, by)
}

func sendTo(t Target) *Sender {
	return &Sender{Patience: time.Minute, Find: func(context.Context) (Found, error) {
		return Found{Target: t, Leave: func() error { return nil }}, nil
	}}
}

func TestAQuietStreamSaysThatItsSenderIsThere(t *testing.T) {
	l, m := local()
	target := &reminded{l, make(chan struct{}, 1)}
	s := sendTo(target)
	s.remind = time.Millisecond
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := s.Stream(t.Context(), r, "a.log", "")
		done <- err
	}()
	for _, line := range []string{"one\n", "two\n"} {
		for range 2 {
			<-target.ch
		}
		if _, err := io.WriteString(w, line); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	if err := <-done; err != nil || m.got("a.log") != "one\ntwo\n" {
		t.Errorf("got %q: %v", m.got("a.log"), err)
	}
}

// deaf is a Target whose first answer to End is lost.
type deaf struct {
	Target
	ends int
}

func (d *deaf) End(ctx context.Context, id uint64) error {
	err := d.Target.End(ctx, id)
	if d.ends++; d.ends == 1 {
		return errors.Join(err, errors.New("the mount went away"))
	}
	return err
}

// remote is l, asked as a running mount is.
func remote(t *testing.T, l *Local) Remote {
	t.Helper()
	s := httptest.NewServer(Handler(l))
	t.Cleanup(s.Close)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
	}
	return Remote{Client: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Files whose names are not UTF-8 were sent under another name where a mount ran, all under the
// same one, and once more where none ran.
func TestSentFilesWhoseNamesAreNotUTF8WereOne(t *testing.T) {
	l, m := local()
	there := remote(t, l)
	var ids []uint64
	for _, path := range []string{"logs/a\xff.log", "logs/a\xfe.log", "logs/\u65e5\u672c\ufffd.log"} {
		b, err := there.Begin(t.Context(), Request{Path: path, Ino: 7, Head: []byte("x")})
		if err != nil {
			t.Fatal(err)
		}
		if got := m.sources[b.ID].Path; got != path {
			t.Errorf("%q is sent as %q", path, got)
		}
		ids = append(ids, b.ID)
	}
	if b, err := l.Begin(t.Context(), Request{Path: "logs/a\xff.log", Ino: 7, Head: []byte("x")}); err != nil || b.ID != ids[0] || b.ID == ids[1] {
		t.Errorf("without the mount it is source %d (%v), with it they are %v", b.ID, err, ids)
	}
}

// A path that no file can have was taken, and all that was sent under it became a dead letter at the
// receiver.
func TestNothingIsSentUnderAPathThatNoFileCanHave(t *testing.T) {
	l, _ := local()
	for path, ok := range map[string]bool{
		"logs/" + strings.Repeat("x", 255) + "/a": true, "logs/" + strings.Repeat("x", 256) + "/a": false, strings.Repeat("\u00e9", 128): false,
		strings.Repeat("abc/", 999) + "abcd": true, strings.Repeat("abc/", 999) + "abcde": false,
	} {
		if _, err := l.Begin(t.Context(), Request{Path: path, Name: "s"}); ok != (err == nil) || !ok && !errors.Is(err, ErrPath) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// Streams whose names are not UTF-8 were one where a mount ran: what had been sent of the one was
// passed over in the other.
func TestStreamsWhoseNamesAreNotUTF8WereOne(t *testing.T) {
	l, _ := local()
	there := remote(t, l)
	ids := map[uint64]string{}
	for _, name := range []string{"a\xff", "a\xfe", "a\ufffd"} {
		b, err := there.Begin(t.Context(), Request{Path: "logs/a.log", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		if was, ok := ids[b.ID]; ok {
			t.Errorf("%q is the stream %q", name, was)
		}
		ids[b.ID] = name
	}
}

// A stream whose end was not answered was said to be another one, though all of it was in the
// queue: the end had made it forgotten.
func TestALostAnswerToTheEndOfAStream(t *testing.T) {
	l, m := local()
	d := &deaf{Target: l}
	sent, err := sendTo(d).Stream(t.Context(), strings.NewReader("one\ntwo"), "a.log", "")
	if err != nil || sent != 7 || m.got("a.log") != "one\ntwo" || d.ends != 2 {
		t.Errorf("%d bytes sent, %q taken, %d ends: %v", sent, m.got("a.log"), d.ends, err)
	}
	if len(m.sources) != 1 {
		t.Errorf("%d sources, want the one that ended", len(m.sources))
	}
	restarted := &Local{Capture: m, Matches: l.Matches, Room: l.Room, Wait: l.Wait} // never seen: long ago
	b := begin(t, restarted, AnonymousName("next"))
	if len(m.sources) != 1 || !m.knows(b.ID) {
		t.Errorf("%d sources, want the stream that ended forgotten", len(m.sources))
	}
}
