// Package certs reads and makes the certificates by which ftfuse's nodes know each other:
// one CA that all of a site trust, and a certificate for each host (PEM files).
package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ErrCertificates is what Open and Reload return for files that are of no use: unreadable,
// no PEM, a key that does not fit, a certificate that the CA did not sign. One that is over
// is taken: Leaf says until when it is good.
var ErrCertificates = errors.New("certificates cannot be used")

// Store holds a host's certificate, its key and the CA of its peers, as they were in the
// files when they were last good. All methods are safe for concurrent use.
type Store struct {
	cert, key, ca string

	loading sync.Mutex // one Reload at a time; guards stamps
	stamps  []stamp
	loaded  atomic.Pointer[loaded]
}

// loaded is one good reading of the files.
type loaded struct {
	server, client *tls.Config
	leaf           *x509.Certificate
}

// stamp is what of a file changes when its content does.
type stamp struct {
	size   int64
	mod    time.Time
	inode  uint64
	exists bool
}

// Open reads the files.
func Open(cert, key, ca string) (*Store, error) {
	s := &Store{cert: cert, key: key, ca: ca}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// Server is the configuration for connections that come in: TLS 1.3, and a peer must show
// a certificate for clients by the CA. It is of the newest good files; ask for each
// connection.
func (s *Store) Server() *tls.Config { return s.loaded.Load().server }

// Client is the configuration for connections that go out: TLS 1.3, and the peer must
// show a certificate by the CA for servers and for the name that it was called by.
func (s *Store) Client() *tls.Config { return s.loaded.Load().client }

// Leaf is this host's own certificate. It must not be changed.
func (s *Store) Leaf() *x509.Certificate { return s.loaded.Load().leaf }

// Reload reads the files again. With an error, which is ErrCertificates, the old ones go
// on being used. Connections that there are keep what they have.
func (s *Store) Reload() error {
	s.loading.Lock()
	defer s.loading.Unlock()
	stamps := s.look()
	l, err := s.load()
	s.stamps = stamps // not tried again before they change again
	if err != nil {
		return err
	}
	s.loaded.Store(l)
	return nil
}

// Watch looks at the files every so often until ctx ends, reads them when one has changed,
// and calls each time told, which may be nil, with what became of that.
func (s *Store) Watch(ctx context.Context, every time.Duration, told func(error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !s.changed() {
			continue
		}
		err := s.Reload()
		if told != nil {
			told(err)
		}
	}
}

func (s *Store) changed() bool {
	s.loading.Lock()
	defer s.loading.Unlock()
	return !slices.Equal(s.stamps, s.look())
}

func (s *Store) look() []stamp {
	var all []stamp
	for _, path := range []string{s.cert, s.key, s.ca} {
		var st stamp
		if fi, err := os.Stat(path); err == nil {
			st = stamp{size: fi.Size(), mod: fi.ModTime(), exists: true}
			if sys, ok := fi.Sys().(*syscall.Stat_t); ok {
				st.inode = sys.Ino
			}
		}
		all = append(all, st)
	}
	return all
}

func (s *Store) load() (*loaded, error) {
	bad := func(format string, args ...any) (*loaded, error) {
		return nil, fmt.Errorf("%w: %w", ErrCertificates, fmt.Errorf(format, args...))
	}
	pair, err := tls.LoadX509KeyPair(s.cert, s.key)
	if err != nil {
		return bad("read %s and %s: %w", s.cert, s.key, err)
	}
	cas, err := readCAs(s.ca)
	if err != nil {
		return bad("read %s: %w", s.ca, err)
	}
	if err := signedBy(pair, cas); err != nil {
		return bad("%s does not pass as one by %s: %w", s.cert, s.ca, err)
	}
	pool := x509.NewCertPool()
	for _, c := range cas {
		pool.AddCert(c)
	}
	base := tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{pair},
		SessionTicketsDisabled: true, // each connection shows its certificate
	}
	l := &loaded{server: base.Clone(), client: base.Clone(), leaf: pair.Leaf}
	l.server.ClientCAs, l.server.ClientAuth = pool, tls.RequireAndVerifyClientCert
	l.client.RootCAs = pool
	return l, nil
}

// signedBy returns nil if one of cas signed pair's certificate, whether or not one of them
// is over or not good yet: that is for the peers to look at. A host whose clock is wrong,
// or whose certificate ran out, still captures.
func signedBy(pair tls.Certificate, cas []*x509.Certificate) (err error) {
	between := x509.NewCertPool()
	from := pair.Leaf.NotBefore
	later := func(a, b time.Time) time.Time {
		if a.After(b) {
			return a
		}
		return b
	}
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("a certificate behind the first: %w", err)
		}
		between.AddCert(c)
		from = later(from, c.NotBefore)
	}
	for _, ca := range cas {
		roots := x509.NewCertPool()
		roots.AddCert(ca)
		if _, err = pair.Leaf.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: later(from, ca.NotBefore),
		}); err == nil {
			return nil
		}
	}
	return err
}

// readCAs reads a file of CA certificates and takes nothing else in it.
func readCAs(path string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var cas []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(cas)+1, err)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("certificate %d, of %s, is not one of a CA", len(cas)+1, c.Subject)
		}
		cas = append(cas, c)
	}
	if len(cas) == 0 {
		return nil, errors.New("it has no PEM block CERTIFICATE")
	}
	return cas, nil
}
