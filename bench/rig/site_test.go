package rig

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testSite is two hosts, one of which answers each connection with "hello".
func testSite(t *testing.T) (a, b *Host) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	s, err := NewSite("", t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if a, err = s.Add("a"); err != nil {
		t.Fatal(err)
	}
	if b, err = s.Add("b"); err != nil {
		t.Fatal(err)
	}
	if !s.Linked() {
		t.Skip("needs network namespaces, veth and bridges")
	}
	var l net.Listener
	if err := b.Do(func() (err error) { l, err = net.Listen("tcp", b.Addr(7400)); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, "hello")
			}()
		}
	}()
	return a, b
}

// talk connects from one host to the other and reads the word.
func talk(from, to *Host, within time.Duration) error {
	return from.Do(func() error {
		c, err := net.DialTimeout("tcp", to.Addr(7400), within)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(within)); err != nil {
			return err
		}
		word, err := io.ReadAll(c)
		if err == nil && string(word) != "hello" {
			err = fmt.Errorf("the other host said %q", word)
		}
		return err
	})
}

func TestFaultsOfALink(t *testing.T) {
	a, b := testSite(t)
	const soon = 300 * time.Millisecond
	good := func() {
		t.Helper()
		if err := talk(a, b, 5*time.Second); err != nil {
			t.Fatalf("over a good link: %v", err)
		}
	}
	good()
	for name, fault := range map[string]func() error{
		"deaf":         func() error { return b.Cut(In) },
		"dumb":         func() error { return b.Cut(Out) },
		"pulled":       func() error { return errors.Join(b.Cut(In), b.Cut(Out)) },
		"no way to a":  func() error { return b.Cut(Out, a) },
		"client deaf":  func() error { return a.Cut(In) },
		"all are lost": func() error { return b.Lose(In, 100) },
	} {
		if err := fault(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var silent net.Error
		if err := talk(a, b, soon); !errors.As(err, &silent) || !silent.Timeout() {
			t.Errorf("%s: %v, want silence", name, err)
		}
		if err := errors.Join(a.Heal(), b.Heal()); err != nil {
			t.Fatal(err)
		}
		good()
	}
	if err := errors.Join(b.Cut(In, b), b.Cut(Out, b)); err != nil { // none that a has part in
		t.Fatal(err)
	}
	good()
	if err := b.Reset(100); err != nil {
		t.Fatal(err)
	}
	if err := talk(a, b, 5*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a RST for each packet: %v, want %v", err, syscall.ECONNREFUSED)
	}
	if err := b.Heal(); err != nil {
		t.Fatal(err)
	}
	if err := b.Lose(In, 30); err != nil {
		t.Fatal(err)
	}
	for range 3 { // TCP sends again
		if err := talk(a, b, 60*time.Second); err != nil {
			t.Errorf("30 %% lost: %v", err)
		}
	}
}

// A namespace is nowhere but in the processes that hold it.
func TestNothingIsLeftOfASite(t *testing.T) {
	a, _ := testSite(t)
	a.site.Close()
	for _, path := range []string{"/run/netns", "/var/run/netns"} {
		if e, _ := os.ReadDir(path); len(e) > 0 { // not there: nothing in it
			t.Errorf("%s has %d entries", path, len(e))
		}
	}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name(), "port") || l.Name() == "br0" {
			t.Errorf("the machine has an interface %s", l.Name())
		}
	}
}
