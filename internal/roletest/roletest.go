// Package roletest has what the tests of queue, sink, plugin and mount/offline and of the roles
// that take batches, relay and receive, need of the machine: addresses, damage, a small disk and one
// that loses power, what a compressed file has.
package roletest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
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

// Unpack returns what a file of that name and these bytes has, by the suffix of the name, and
// fails the test where it is not whole.
func Unpack(t testing.TB, name string, raw []byte) string {
	t.Helper()
	var r io.Reader = bytes.NewReader(raw)
	var err error
	switch filepath.Ext(name) {
	case ".gz":
		r, err = gzip.NewReader(r)
	case ".zst":
		r, err = zstd.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("%s is not whole: %v", name, err)
	}
	return string(all)
}
