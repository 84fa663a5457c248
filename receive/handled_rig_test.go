package receive

import (
	"bytes"
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

// store is a Handler whose store is one file, to which each commit appends a line: the position, and
// the bytes of each path that came since the one before.
type store struct {
	file string

	mu    sync.Mutex
	Bytes map[string][]byte // of each path
	since map[string][]byte // of them not committed

	forget bool                          // Position is always zero
	batch  func(b *Batch) error          // called before a batch is taken
	commit func(at Position) error       // called before a commit
	seen   func(b *Batch, recs []Record) // called with each batch
}

// commit is a line of the file.
type commit struct {
	At    []byte
	Bytes map[string][]byte
}

func newStore(file string) *store {
	return &store{file: file, Bytes: map[string][]byte{}, since: map[string][]byte{}}
}

func (s *store) Position(context.Context) (at Position, err error) {
	raw, err := os.ReadFile(s.file)
	if errors.Is(err, os.ErrNotExist) {
		return at, nil
	}
	whole := int64(0) // a kill may leave the beginning of a line
	for line := range bytes.Lines(raw) {
		if line[len(line)-1] != '\n' {
			return at, errors.Join(err, os.Truncate(s.file, whole))
		}
		whole += int64(len(line))
		var c commit
		if err := json.Unmarshal(line, &c); err != nil {
			return at, err
		}
		for path, b := range c.Bytes {
			s.Bytes[path] = append(s.Bytes[path], b...)
		}
		if s.forget {
			continue
		}
		if err := at.UnmarshalBinary(c.At); err != nil {
			return at, err
		}
	}
	return at, err
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
		s.Bytes[r.Path] = append(s.Bytes[r.Path], r.Data...)
		s.since[r.Path] = append(s.since[r.Path], r.Data...)
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
	c := commit{Bytes: s.since}
	c.At, _ = at.MarshalBinary()
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(s.file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(raw, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		clear(s.since)
	}
	return err
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
		if got, want := string(st.Bytes[name]), l.want[name].String(); got != want {
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
