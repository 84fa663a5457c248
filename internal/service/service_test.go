package service

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/certs"
)

const testLimit = 20 * time.Second // what takes longer has failed

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOneProcessHasAStateDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	f, err := Lock(dir)
	must(t, err)
	if _, err := Lock(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("a second lock: %v, want ErrLocked", err)
	}
	must(t, f.Close())
	if f, err = Lock(dir); err != nil {
		t.Errorf("after the first was closed: %v", err)
	}
	must(t, f.Close())
}

// TestPartsStopInOrder: each has ended before the next is asked to.
func TestPartsStopInOrder(t *testing.T) {
	p := NewParts()
	var mu sync.Mutex
	var ended []string
	for _, name := range []string{"a", "b", "c"} {
		p.Start(name, func(ctx context.Context) error {
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			ended = append(ended, name)
			return ctx.Err()
		})
	}
	p.Stop("b", "c", "a")
	if want := []string{"b", "c", "a"}; !slices.Equal(ended, want) {
		t.Errorf("they ended in the order %v, want %v", ended, want)
	}
	if err := p.Err(); err != nil {
		t.Errorf("an end that was asked for is an error: %v", err)
	}
}

// TestAPartThatFailsIsHeard: by name, and every wait for the parts ends.
func TestAPartThatFailsIsHeard(t *testing.T) {
	p := NewParts()
	broken := errors.New("broken")
	ctx, cancel := p.Until(context.Background())
	defer cancel()
	p.Start("good", func(ctx context.Context) error { <-ctx.Done(); return errors.New("while it stopped") })
	p.Start("bad", func(context.Context) error { return broken })
	select {
	case <-p.Failed():
	case <-time.After(testLimit):
		t.Fatal("nobody heard of it")
	}
	<-ctx.Done()
	p.Stop("good", "bad")
	if err := p.Err(); !errors.Is(err, broken) || !strings.Contains(err.Error(), "bad: broken") || !strings.Contains(err.Error(), "stop good: while it stopped") {
		t.Errorf("the errors are %v", err)
	}
}

func TestNoFilesAreNoSecurity(t *testing.T) {
	s, err := OpenSecurity(Files{}, nil, nil)
	if err != nil || s != nil || s.Server() != nil || s.Client() != nil || s.Admission() != nil {
		t.Errorf("%+v, %v", s, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must(t, s.Watch(ctx))
	if _, err := OpenSecurity(Files{Cert: "/nowhere", Key: "/nowhere", CA: "/nowhere"}, nil, nil); !errors.Is(err, certs.ErrCertificates) {
		t.Errorf("files that are not there: %v", err)
	}
}

// TestAHangupReadsTheCertificatesAgain, and refuses bad ones.
func TestAHangupReadsTheCertificatesAgain(t *testing.T) {
	hup := make(chan os.Signal, 8) // before Watch listens, a SIGHUP would end the test
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	dir := t.TempDir()
	_, err := certs.MakeCA(dir, "test", time.Hour)
	must(t, err)
	m, err := certs.MakeHost(dir, dir, []string{"h"}, time.Hour, false)
	must(t, err)
	log := &lockedBuffer{}
	s, err := OpenSecurity(Files{m.Cert, m.Key, dir + "/ca.pem"}, map[string][]string{"h": {"h"}}, slog.New(slog.NewTextHandler(log, nil)))
	must(t, err)
	s.every = time.Hour // nothing but the signal
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx) }()
	first := s.store.Leaf().SerialNumber
	_, err = certs.MakeHost(dir, dir, []string{"h"}, time.Hour, true)
	must(t, err)
	hangup(t, "a new certificate", func() bool { return s.store.Leaf().SerialNumber.Cmp(first) != 0 })
	second := s.store.Leaf().SerialNumber
	must(t, os.WriteFile(m.Cert, []byte("no certificate\n"), 0o644))
	hangup(t, "a refusal", func() bool { return strings.Contains(log.String(), "the old ones stay") })
	if s.store.Leaf().SerialNumber.Cmp(second) != 0 {
		t.Error("a bad file took the place of a good certificate")
	}
	cancel()
	must(t, <-done)
}

// hangup sends SIGHUP until ok.
func hangup(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.Now().Add(testLimit)
	for tick := time.NewTicker(10 * time.Millisecond); !ok(); <-tick.C {
		must(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
		if time.Now().After(limit) {
			t.Fatalf("waiting for %s", what)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
