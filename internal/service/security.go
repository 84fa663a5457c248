package service

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"ftfuse/internal/certs"
	"ftfuse/internal/control"
	"ftfuse/transport"
)

// certsEvery is how often the certificates' files are looked at.
const certsEvery = 5 * time.Second

// Security is who a role is and whom it lets in, as its certificates and its list say. A
// nil *Security is plain TCP, which admits everybody. All methods are safe for concurrent
// use.
type Security struct {
	store     *certs.Store
	admission atomic.Pointer[transport.Admission]
	every     time.Duration // between two looks at the files
	log       *slog.Logger
}

// Files are the PEM files of [tls]. The zero value is none.
type Files struct{ Cert, Key, CA string }

// OpenSecurity reads the files. allow is the role's list of peers (see
// transport.NewAdmission). Without files it returns nil.
func OpenSecurity(f Files, allow map[string][]string, log *slog.Logger) (*Security, error) {
	if f == (Files{}) {
		return nil, nil
	}
	store, err := certs.Open(f.Cert, f.Key, f.CA)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	admission, err := transport.NewAdmission(allow)
	if err != nil {
		return nil, err
	}
	s := &Security{store: store, every: certsEvery, log: log}
	s.admission.Store(admission)
	return s, nil
}

// SetAllow replaces the role's list of peers, for those who are connected too. An error
// changes nothing.
func (s *Security) SetAllow(allow map[string][]string) error {
	if s == nil {
		return nil
	}
	admission, err := transport.NewAdmission(allow)
	if err == nil {
		s.admission.Store(admission)
	}
	return err
}

// Server is what transport.ServerOptions.TLS takes.
func (s *Security) Server() func() *tls.Config {
	if s == nil {
		return nil
	}
	return s.store.Server
}

// Client is what transport.ClientOptions.TLS takes.
func (s *Security) Client() func() *tls.Config {
	if s == nil {
		return nil
	}
	return s.store.Client
}

// Admission is what transport.ServerOptions.Admission takes.
func (s *Security) Admission() func() *transport.Admission {
	if s == nil {
		return nil
	}
	return s.admission.Load
}

// Expires is when the role's own certificate is over; zero for plain TCP.
func (s *Security) Expires() time.Time {
	if s == nil {
		return time.Time{}
	}
	return s.store.Leaf().NotAfter
}

// Watch reads the files again when they change and on SIGHUP, until ctx ends. Bad ones
// are refused, and the old ones go on being used. It returns nil.
func (s *Security) Watch(ctx context.Context) error {
	if s == nil {
		<-ctx.Done()
		return nil
	}
	told := func(err error) {
		if err != nil {
			s.log.Error("certificates refused, the old ones stay", "error", err)
			return
		}
		s.log.Info("certificates read again", "not_after", s.store.Leaf().NotAfter)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.store.Watch(ctx, s.every, told) })
	return control.OnHangup(ctx, func() { told(s.store.Reload()) })
}
