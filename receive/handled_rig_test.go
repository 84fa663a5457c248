package receive

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// store is a Handler whose store is one file, replaced at every commit: the bytes of each
// path, and the position.
type store struct {
	file string

	mu     sync.Mutex
	At     []byte
	Bytes  map[string]string
	Resent int
	Healed int

	forget bool                          // Position is always zero
	batch  func(b *Batch) error          // called before a batch is taken
	commit func(at Position) error       // called before a commit
	seen   func(b *Batch, recs []Record) // called with each batch
}

func newStore(file string) *store { return &store{file: file, Bytes: map[string]string{}} }

func (s *store) Position(context.Context) (at Position, err error) {
	raw, err := os.ReadFile(s.file)
	if errors.Is(err, os.ErrNotExist) {
		return at, nil
	}
	if err != nil {
		return at, err
	}
	if err := json.Unmarshal(raw, s); err != nil {
		return at, err
	}
	if s.forget {
		return at, nil
	}
	return at, at.UnmarshalBinary(s.At)
}

func (s *store) Batch(_ context.Context, b *Batch) error {
	if s.batch != nil {
		if err := s.batch(b); err != nil {
			return err
		}
	}
	var recs []Record
	for {
		r, err := b.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		recs = append(recs, r)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range recs {
		s.Bytes[r.Path] += string(r.Data)
	}
	if b.Resent {
		s.Resent++
	}
	if s.seen != nil {
		s.seen(b, recs)
	}
	return nil
}

func (s *store) Commit(_ context.Context, at Position) error {
	if s.commit != nil {
		if err := s.commit(at); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.At, _ = at.MarshalBinary()
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.file+".tmp", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(s.file+".tmp", s.file)
}

// serverOptions are those of a Server in s's place.
func (s setup) serverOptions(h Handler, log *slog.Logger) ServerOptions {
	return ServerOptions{Dir: filepath.Join(s.State, "own"), Listen: s.Listen, Handler: h, Host: "own", CommitEvery: s.CheckpointEvery, CommitBytes: s.CheckpointBytes, Logger: log}
}

// ownChild is a process with a Server of its own.
func ownChild(s setup, log *slog.Logger) error {
	srv, err := OpenServer(context.Background(), s.serverOptions(newStore(s.Store), log))
	if err != nil {
		return err
	}
	return errors.Join(srv.Serve(context.Background()), srv.Close())
}

// own runs a Server in this process.
type own struct {
	t    *testing.T
	s    *Server
	stop context.CancelFunc
	done chan error
}

func startOwn(t *testing.T, s setup, h Handler) *own {
	t.Helper()
	srv, err := OpenServer(t.Context(), s.serverOptions(h, testLogger(t)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	x := &own{t: t, s: srv, stop: cancel, done: make(chan error, 1)}
	go func() { err := srv.Serve(ctx); x.done <- errors.Join(err, srv.Close()) }()
	t.Cleanup(cancel)
	return x
}

func (x *own) end() error {
	x.t.Helper()
	select {
	case err := <-x.done:
		return err
	case <-time.After(testLimit):
		x.t.Fatal("the server does not end")
		return nil
	}
}

func (l *load) checkStore(t *testing.T, file string) {
	t.Helper()
	st := newStore(file)
	if _, err := st.Position(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range l.files {
		if got, want := st.Bytes[name], l.want[name].String(); got != want {
			t.Errorf("the store has %d bytes of %s, want %d; they differ at %d", len(got), name, len(want), differAt(got, want))
		}
	}
}

func differAt(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
