// Package roletest has what the tests of the queue and of the roles that take batches, relay
// and receive, need of the machine: addresses, and damage.
package roletest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// lastPort counts the ports that FreePort has given out.
var lastPort atomic.Uint32

// FreePort returns an address that stays free while nobody listens there, between two starts
// of a role: one of this process alone, where tests of other packages that run meanwhile take
// ports of 127.0.0.1, with a port that no two tests get and that the kernel gives to nobody
// (ip_local_port_range). Nothing is tried there: a child that was just forked would go on
// listening until its exec.
func FreePort(t testing.TB) string {
	t.Helper()
	pid, port := os.Getpid(), lastPort.Add(1)
	if port > 20000 {
		t.Fatal("all ports are given out")
	}
	return fmt.Sprintf("127.%d.%d.%d:%d", 64+pid>>16%64, pid>>8&255, pid&255, 10000+port)
}

// Spoil damages one byte of a batch with this data in the segments of the queue in dir,
// which nobody has open.
func Spoil(t testing.TB, dir string, data []byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(raw, data)
		if at < 0 {
			continue
		}
		raw[at+len(data)/2] ^= 1
		if err := os.WriteFile(name, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("the batch is in none of %v", files)
}
