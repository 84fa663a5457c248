package sink

import (
	"testing"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// output1 is one output with the defaults filled in.
func output1(dir string, change func(o *Output)) Output {
	o := Output{Hosts: "*", Path: "**", Dir: dir, File: "%H/%F", Format: "%L", Time: "%Y-%m-%dT%H:%M:%S.%-%z"}
	if change != nil {
		change(&o)
	}
	return o
}

type rec struct {
	host, path, data string
	flags            uint16
	pid              uint32
}

// sealer numbers the batches of a lane.
type sealer struct {
	lane batch.Lane
	b    *record.Builder
	n    uint64
}

func newSealer(origin byte) *sealer {
	return &sealer{
		lane: batch.Lane{Origin: batch.Origin{origin}, Epoch: batch.Epoch{Counter: 1, Random: 7}},
		b:    record.NewBuilder(1 << 20),
	}
}

func (s *sealer) seal(recs ...rec) batch.Sealed {
	s.n++
	for _, r := range recs {
		a := record.Attr{Host: r.host, Path: r.path, PID: r.pid, UID: 10, GID: 20, Flags: r.flags}
		if !s.b.Add(&a, []byte(r.data)) {
			panic("a test's record does not fit")
		}
	}
	return s.b.Seal(batch.ID{Lane: s.lane, N: s.n}, 1e18)
}
