package certs

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// site makes a CA in a new directory.
func site(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := MakeCA(dir, "site", DefaultCALife); err != nil {
		t.Fatal(err)
	}
	return dir
}

func host(t *testing.T, dir string, names ...string) Made {
	t.Helper()
	m, err := MakeHost(dir, dir, names, DefaultHostLife, false)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func open(t *testing.T, m Made, dir string) *Store {
	t.Helper()
	s, err := Open(m.Cert, m.Key, filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// greet connects client to server, calling it name, and returns what each end says.
func greet(t *testing.T, server, client *Store, name string) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		served <- tls.Server(c, server.Server()).Handshake()
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conf := client.Client().Clone()
	conf.ServerName = name
	tc := tls.Client(c, conf)
	clientErr = tc.Handshake()
	if clientErr == nil {
		_, clientErr = tc.Read(make([]byte, 1)) // in TLS 1.3 a refusal comes here
		if clientErr != nil && clientErr.Error() == "EOF" {
			clientErr = nil
		}
	}
	c.Close()
	return <-served, clientErr
}

func TestHostsOfOneSiteKnowEachOther(t *testing.T) {
	dir := site(t)
	relay := open(t, host(t, dir, "relay-a", "relay-a.example.net", "10.0.0.1", "2001:db8::1"), dir)
	web := open(t, host(t, dir, "web-01"), dir)
	for _, name := range []string{"relay-a", "RELAY-A", "relay-a.example.net", "10.0.0.1", "2001:db8::1"} {
		if serverErr, clientErr := greet(t, relay, web, name); serverErr != nil || clientErr != nil {
			t.Errorf("called %s: %v, %v", name, serverErr, clientErr)
		}
	}
	for _, name := range []string{"relay-b", "10.0.0.2"} {
		if _, clientErr := greet(t, relay, web, name); clientErr == nil {
			t.Errorf("it passes for %s", name)
		}
	}
	other := site(t)
	stranger := open(t, host(t, other, "web-01"), other)
	if serverErr, _ := greet(t, relay, stranger, "relay-a"); serverErr == nil {
		t.Error("a host of another site is let in")
	}
	mixed, err := Open(filepath.Join(other, "web-01.pem"), filepath.Join(other, "web-01-key.pem"), filepath.Join(other, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if _, clientErr := greet(t, mixed, web, "web-01"); clientErr == nil {
		t.Error("a server of another site is believed")
	}
}

// Whatever the umask is: keys are their owner's, certificates anybody's.
func TestKeysAreTheirOwnersAlone(t *testing.T) {
	for _, mask := range []int{0, 0o077} {
		old := syscall.Umask(mask)
		dir := site(t)
		m := host(t, dir, "a")
		syscall.Umask(old)
		for file, want := range map[string]fs.FileMode{m.Key: 0o600, filepath.Join(dir, "ca-key.pem"): 0o600, m.Cert: 0o644, filepath.Join(dir, "ca.pem"): 0o644} {
			if st, err := os.Stat(file); err != nil || st.Mode() != want {
				t.Errorf("umask %03o: %s is %v, %v; want %v", mask, file, st.Mode(), err, want)
			}
		}
		if names, _ := filepath.Glob(filepath.Join(dir, ".*")); len(names) > 0 {
			t.Errorf("left behind: %v", names)
		}
	}
}

func TestWhatIsThereIsNotReplacedUnasked(t *testing.T) {
	dir := site(t)
	m := host(t, dir, "a")
	before := map[string]string{}
	files := []string{m.Cert, m.Key, filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		before[f] = string(data)
	}
	if _, err := MakeCA(dir, "site", DefaultCALife); !errors.Is(err, ErrExists) {
		t.Errorf("a second CA: %v", err)
	}
	if _, err := MakeHost(dir, dir, []string{"a"}, DefaultHostLife, false); !errors.Is(err, ErrExists) {
		t.Errorf("a second certificate: %v", err)
	}
	for _, name := range []string{"ca", "ca-key"} {
		if _, err := MakeHost(dir, dir, []string{name}, DefaultHostLife, true); !errors.Is(err, ErrName) {
			t.Errorf("a host named %s: %v", name, err)
		}
	}
	for _, f := range files {
		if data, err := os.ReadFile(f); err != nil || string(data) != before[f] {
			t.Errorf("%s was changed, %v", f, err)
		}
	}
	// A key without its certificate is something too.
	if err := os.Remove(filepath.Join(dir, "ca.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err := MakeCA(dir, "site", DefaultCALife); !errors.Is(err, ErrExists) {
		t.Errorf("over the key of a CA: %v", err)
	}
}

func TestARunningStoreTakesAReplacedCertificate(t *testing.T) {
	dir := site(t)
	m := host(t, dir, "a")
	s := open(t, m, dir)
	old := s.Leaf().SerialNumber
	if _, err := MakeHost(dir, dir, []string{"a"}, DefaultHostLife, true); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if s.Leaf().SerialNumber.Cmp(old) == 0 {
		t.Error("the old certificate is still used")
	}
}

func TestACertificateEndsWithItsCA(t *testing.T) {
	dir := t.TempDir()
	ca, err := MakeCA(dir, "site", 48*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	m := host(t, dir, "a")
	if m.NotAfter.After(ca.NotAfter) {
		t.Errorf("good until %v, the CA until %v", m.NotAfter, ca.NotAfter)
	}
	open(t, m, dir)
}

func TestNamesThatNoHostHasAreRefused(t *testing.T) {
	dir := site(t)
	for _, name := range []string{"", "a/b", "../a", "a b", "*", "*.example.org", ".a", "a.", "a..b", "-a", "müller", "a\n", strings.Repeat("a", 254)} {
		if _, err := MakeHost(dir, dir, []string{"good", name}, DefaultHostLife, true); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := MakeHost(dir, dir, nil, DefaultHostLife, true); !errors.Is(err, ErrName) {
		t.Errorf("no name: %v", err)
	}
	long := strings.Repeat("a", 60) + "." + strings.Repeat("b", 60)
	s := open(t, host(t, dir, long), dir)
	if s.Leaf().DNSNames[0] != long || s.Leaf().Subject.CommonName != "" {
		t.Errorf("a long name becomes %v, %q", s.Leaf().DNSNames, s.Leaf().Subject.CommonName)
	}
}

func TestACAThatCannotSignIsNamed(t *testing.T) {
	for what, spoil := range map[string]func(dir string) string{
		"ca.pem: open": func(dir string) string { os.Remove(filepath.Join(dir, "ca.pem")); return dir },
		"no PEM block PRIVATE": func(dir string) string {
			os.WriteFile(filepath.Join(dir, "ca-key.pem"), []byte("x"), 0o600)
			return dir
		},
		"not the certificate of": func(dir string) string {
			m := host(t, dir, "a")
			os.Rename(m.Cert, filepath.Join(dir, "ca.pem"))
			return dir
		},
		"not the key of": func(dir string) string {
			os.Rename(filepath.Join(site(t), "ca-key.pem"), filepath.Join(dir, "ca-key.pem"))
			return dir
		},
	} {
		dir := spoil(site(t))
		_, err := MakeHost(dir, dir, []string{"b"}, DefaultHostLife, false)
		if !errors.Is(err, ErrCertificates) || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "ftfuse cert ca") {
			t.Errorf("got %v, want %q", err, what)
		}
	}
	dir := t.TempDir()
	if _, err := MakeCA(dir, "site", time.Nanosecond); err != nil {
		t.Fatal(err)
	}
	if _, err := MakeHost(dir, dir, []string{"b"}, DefaultHostLife, false); err == nil || !strings.Contains(err.Error(), "good until") {
		t.Errorf("a CA that is over: %v", err)
	}
}

// TestACertificateReplacesNoKey: the certificate of "a-key" is called what the key of "a" is.
func TestACertificateReplacesNoKey(t *testing.T) {
	dir := t.TempDir()
	if _, err := MakeCA(dir, "test", time.Hour); err != nil {
		t.Fatal(err)
	}
	m, err := MakeHost(dir, dir, []string{"a"}, time.Hour, false)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(m.Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := MakeHost(dir, dir, []string{"a-key"}, time.Hour, true); !errors.Is(err, ErrExists) {
		t.Errorf("%v, want ErrExists", err)
	}
	if after, err := os.ReadFile(m.Key); err != nil || string(after) != string(before) {
		t.Errorf("the key of another host was replaced (%v)", err)
	}
	if _, err := MakeHost(dir, dir, []string{"a"}, time.Hour, true); err != nil {
		t.Errorf("its own is not replaced: %v", err)
	}
}

// TestDirectoryIsMade for its owner alone, with parents, for the CA and for hosts; one that is
// there keeps its mode, and none is made where there is no CA.
func TestDirectoryIsMade(t *testing.T) {
	old := syscall.Umask(0o002)
	defer syscall.Umask(old)
	top := t.TempDir()
	ca, hosts, none := filepath.Join(top, "a", "site"), filepath.Join(top, "hosts"), filepath.Join(top, "none")
	if _, err := MakeCA(ca, "site", DefaultCALife); err != nil {
		t.Fatal(err)
	}
	if _, err := MakeHost(ca, hosts, []string{"web-01"}, DefaultHostLife, false); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Dir(ca), ca, hosts} {
		fi, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", dir, fi.Mode())
		}
	}
	if _, err := MakeHost(none, none, []string{"web-01"}, DefaultHostLife, false); !errors.Is(err, ErrCertificates) {
		t.Errorf("without a CA: %v", err)
	}
	if _, err := os.Stat(none); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory was made for nothing: %v", err)
	}
	if err := os.Chmod(hosts, 0o750); err != nil {
		t.Fatal(err)
	}
	host(t, ca, "web-02")
	if _, err := MakeHost(ca, hosts, []string{"web-02"}, DefaultHostLife, false); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(hosts); err != nil || fi.Mode().Perm() != 0o750 {
		t.Errorf("%v %v", fi.Mode(), err)
	}
}
