package kernel

import (
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/state-v1 anew, from a mount on this kernel")

// golden is a state of version 1 as Linux 6.18 on x86-64 and this package made it.
func golden(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/state-v1")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStateOfVersion1IsUnderstood(t *testing.T) {
	if *update {
		r := newRig(t)
		b, err := os.ReadFile(filepath.Join(r.dir, ".state"))
		if err == nil {
			err = os.MkdirAll("testdata", 0o755)
		}
		if err == nil {
			err = os.WriteFile("testdata/state-v1", b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	request, reply, err := decodeState(golden(t))
	if err != nil {
		t.Fatal(err)
	}
	d := &Device{request: request, reply: reply}
	if !d.Passthrough() || d.MaxWrite() != 1<<20 || string(d.State()) != string(golden(t)) {
		t.Errorf("passthrough %v, max write %d", d.Passthrough(), d.MaxWrite())
	}
}

// TestADamagedStateIsRefused: each byte of it counts, and no length leads astray.
func TestADamagedStateIsRefused(t *testing.T) {
	good := golden(t)
	refused := func(what string, b []byte) {
		t.Helper()
		if _, err := Attach(-1, b); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range good {
		for _, bit := range []byte{1, 0x80} {
			b := append([]byte(nil), good...)
			b[i] ^= bit
			refused("a flipped bit", b)
		}
		refused("a state that was cut", good[:i])
	}
	refused("a byte more", append(append([]byte(nil), good...), 0))
	refused("nothing", nil)
}

// TestAStateThatDoesNotFitIsRefused: whole, with a good checksum, and wrong.
func TestAStateThatDoesNotFitIsRefused(t *testing.T) {
	const request, reply = stateHead, stateHead + initInMax
	for _, c := range []struct {
		what, want string
		at         int
		to         uint32
	}{
		{"a later version", "version 2", 8, 2},
		{"no INIT", "opcode 1", request + inOpcode, 1},
		{"a length of its own", "that says 7", request, 7},
		{"lengths that wrap", "messages of", 12, 1<<32 - 1},
		{"a reply to another request", "another request", reply + outUnique, 999},
		{"a refusal", "error -71", reply + outError, 1<<32 - 71},
		{"a reply of another length", "that says 7", reply, 7},
		{"writes that do not fit into a buffer", "2097152", reply + outMaxWrite, 2 << 20},
	} {
		b := golden(t)
		binary.LittleEndian.PutUint32(b[c.at:], c.to)
		end := len(b) - 4
		binary.LittleEndian.PutUint32(b[end:], crc32.Checksum(b[:end], castagnoli))
		if _, err := Attach(-1, b); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", c.what, err, c.want)
		}
	}
}

// TestAnotherDescriptorIsRefused: a good state with what is no /dev/fuse. It stays open.
func TestAnotherDescriptorIsRefused(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Attach(int(f.Fd()), golden(t)); !errors.Is(err, ErrState) {
		t.Errorf("error %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Attach(1<<20, golden(t)); err == nil {
		t.Error("a closed descriptor was taken")
	}
}
