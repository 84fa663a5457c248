package certs

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStoreRefusesWhatIsOfNoUse, and says which file it is.
func TestStoreRefusesWhatIsOfNoUse(t *testing.T) {
	dir, other := site(t), site(t)
	a, b := host(t, dir, "a"), host(t, dir, "b")
	ca := filepath.Join(dir, "ca.pem")
	text := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct{ cert, key, ca, want string }{
		"no certificate":       {dir + "/none.pem", a.Key, ca, "none.pem"},
		"no key":               {a.Cert, dir + "/none.pem", ca, "none.pem"},
		"no CA":                {a.Cert, a.Key, dir + "/none.pem", "none.pem"},
		"another's key":        {a.Cert, b.Key, ca, "private key does not match"},
		"another CA":           {a.Cert, a.Key, filepath.Join(other, "ca.pem"), "does not pass"},
		"no PEM":               {text("c.pem", "hello"), a.Key, ca, "c.pem"},
		"an empty CA file":     {a.Cert, a.Key, text("x.pem", ""), "no PEM block"},
		"a host as the CA":     {a.Cert, a.Key, b.Cert, "not one of a CA"},
		"a key as the CA":      {a.Cert, a.Key, a.Key, "no PEM block"},
		"a damaged CA":         {a.Cert, a.Key, text("y.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "certificate 1"},
		"the CA is no host of": {ca, a.Key, ca, "private key does not match"},
	} {
		if s, err := Open(c.cert, c.key, c.ca); s != nil || !errors.Is(err, ErrCertificates) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestCertificatesThatAreOverAreTaken: a host whose certificate ran out, or whose clock
// is wrong, starts; its peers refuse it.
func TestCertificatesThatAreOverAreTaken(t *testing.T) {
	dir := site(t)
	good := open(t, host(t, dir, "good"), dir)
	m, err := MakeHost(dir, dir, []string{"late"}, time.Nanosecond, false)
	if err != nil {
		t.Fatal(err)
	}
	late := open(t, m, dir)
	if late.Leaf().NotAfter.After(time.Now()) {
		t.Fatal("the certificate is not over")
	}
	var invalid x509.CertificateInvalidError
	if _, err := greet(t, late, good, "late"); !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		t.Errorf("as a server: %v", err)
	}
	if err, _ := greet(t, good, late, "good"); !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		t.Errorf("as a client: %v", err)
	}
}

// TestReloadKeepsWhatIsGood: a bad file is reported once and changes nothing; a good one
// is used from then on, without being asked for.
func TestReloadKeepsWhatIsGood(t *testing.T) {
	dir := site(t)
	m := host(t, dir, "a")
	s := open(t, m, dir)
	first := s.Leaf()
	told := make(chan error, 10)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Watch(ctx, time.Millisecond, func(err error) { told <- err })
	}()
	defer func() { cancel(); <-done }()
	good, err := os.ReadFile(m.Cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.Cert, []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := <-told; !errors.Is(err, ErrCertificates) {
		t.Errorf("a bad file: %v", err)
	}
	if s.Leaf() != first {
		t.Error("the good certificate was given up")
	}
	if err := s.Reload(); !errors.Is(err, ErrCertificates) || s.Leaf() != first {
		t.Errorf("Reload: %v", err)
	}
	if err := os.WriteFile(m.Cert, good, 0o644); err != nil {
		t.Fatal(err)
	}
	for err := range told { // a half written file may be seen before the whole one
		if err == nil {
			break
		}
	}
	if s.Leaf() == first || !s.Leaf().Equal(first) {
		t.Error("the file was not read again")
	}
}
