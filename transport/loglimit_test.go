package transport

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"ftfuse/internal/batch"
)

// lockedLog is a log that is read while it is written.
type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), what)
}

// TestRefusalsDoNotFillTheLog, whatever for.
func TestRefusalsDoNotFillTheLog(t *testing.T) {
	log := &lockedLog{}
	s, ln := serve(t, ServerOptions{Logger: slog.New(slog.NewTextHandler(log, nil))}, newTestHandler())
	nc, fr := rawClient(t, ln.Addr().String())
	const each = 50
	for n := range uint64(each) {
		loop := testBatch(testLane(1), n+1, []byte("x"))
		loop.Via = []batch.Node{testNode(0xee)}
		foreign := testBatch(testLane(1), n+1, []byte("x"))
		for _, f := range [][]byte{append(appendBatch(nil, &loop, testNode(1)), 'x'), append(appendBatch(nil, &foreign, testNode(2)), 'x')} {
			if _, err := nc.Write(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 * each {
		awaitFrame(t, fr, typeRefuse)
	}
	if n := s.Stats().Peers[0].Refused; n != 2*each {
		t.Errorf("%d are counted", n)
	}
	if n := log.count("refused a batch"); n != 2 {
		t.Errorf("%d lines for %d refusals of two kinds", n, 2*each)
	}
}

// TestConnectionsDoNotFillTheLog: a peer may come and go as often as it likes.
func TestConnectionsDoNotFillTheLog(t *testing.T) {
	log := &lockedLog{}
	s, ln := serve(t, ServerOptions{Logger: slog.New(slog.NewTextHandler(log, nil))}, newTestHandler())
	for range 3 * loggedConns {
		nc, _ := rawClient(t, ln.Addr().String())
		nc.Close()
		await(t, nil, "the end", func() bool { return len(s.Stats().Peers) == 0 })
	}
	for _, what := range []string{"peer connected", "connection to a peer ended"} {
		if n := log.count(what); n != loggedConns {
			t.Errorf("%q stands %d times in the log, want %d", what, n, loggedConns)
		}
	}
}

func TestLogLimitSaysWhatItLeftOut(t *testing.T) {
	var l logLimit
	for n := range 10 {
		if without, ok := l.allow("a", 3); without != 0 || ok != (n < 3) {
			t.Errorf("%d: %d %v", n, without, ok)
		}
	}
	l.seen["a"].at = time.Now().Add(-logEvery)
	if without, ok := l.allow("a", 3); without != 7 || !ok {
		t.Errorf("later: %d %v", without, ok)
	}
	if without, ok := l.allow("a", 3); without != 0 || !ok {
		t.Errorf("and once more: %d %v", without, ok)
	}
}
