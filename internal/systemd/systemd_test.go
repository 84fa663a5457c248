package systemd

import (
	"errors"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func listen(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestTheManagerHearsEachWord over a path and over an abstract name.
func TestTheManagerHearsEachWord(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@ftfuse-test-" + filepath.Base(t.TempDir()) + time.Now().Format("150405.000000000")} {
		c := listen(t, name)
		t.Setenv(Env, name)
		for want, say := range map[string]func() error{
			`^READY=1$`: Ready, `^STOPPING=1$`: Stopping,
			`^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]+$`: Reloading,
			`^STATUS=failed: a b$`:                      func() error { return Failed(errors.New("a\nb")) },
		} {
			if err := say(); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 4096)
			if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, err := c.Read(b)
			if err != nil || !regexp.MustCompile(want).Match(b[:n]) {
				t.Errorf("over %s: got %q, %v, want %s", name, b[:n], err, want)
			}
		}
	}
}

func TestNobodyAskedIsNoError(t *testing.T) {
	t.Setenv(Env, "")
	for _, say := range []func() error{Ready, Stopping, Reloading} {
		if err := say(); err != nil {
			t.Error(err)
		}
	}
}

func TestASocketThatIsNoneIsNamed(t *testing.T) {
	for _, name := range []string{"vsock:2:1", filepath.Join(t.TempDir(), "gone")} {
		t.Setenv(Env, name)
		if err := Ready(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
