package relay

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// raceEnabled: the race detector keeps memory of its own.
var raceEnabled bool

// The ballast of the heap, and the area that is made for it, must not be resident.
func TestIdleRelayKeepsNoMemoryForItsBallast(t *testing.T) {
	if raceEnabled {
		t.Skip("no memory is measured under the race detector")
	}
	s := newSetup(t, newAggregator(t, 9))
	p := spawn(t, s, "")
	waitFor(t, "the relay to listen", func() bool {
		c, err := net.Dial("tcp", s.Listen)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(raw), "VmRSS:")
	var kb int64
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		t.Fatalf("read VmRSS of %q: %v", raw, err)
	}
	if kb<<10 >= ballastBytes {
		t.Fatalf("a relay that has nothing to do keeps %d kB, want less than the ballast of %d", kb, ballastBytes>>10)
	}
	t.Logf("%d kB", kb)
}
