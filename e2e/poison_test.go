package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"ftfuse/internal/batch"
	"ftfuse/transport"
)

// Batches that the aggregator will never take (its records are of another host than the
// envelope says) or cannot read come through a relay, which does not look inside. They hold
// up nothing that comes after them, in their own lane or in others.
func TestPoisonThroughARelayHoldsUpNothing(t *testing.T) {
	s := newSite(t)
	g := s.plainAgg("g1")
	a := s.relay("a1", "", group{mode: "any", primary: s.aggs})
	away := s.add("away", "", nil)
	s.start()
	lane := newLane()
	foreign := sealedLine(t, batch.ID{Lane: lane, N: 1}, "web-02", "a.log", "said to be of another\n")
	foreign.Host = "web-01"
	garbage := sealedLine(t, batch.ID{Lane: lane, N: 2}, "web-01", "a.log", "cut short\n")
	garbage.Data = garbage.Data[:len(garbage.Data)-8]
	garbage.CRC = batch.Checksum(garbage.Data)
	o := peerOptions{host: "web-01", role: "mount", batches: []batch.Sealed{
		foreign, garbage,
		sealedLine(t, batch.ID{Lane: lane, N: 3}, "web-01", "a.log", "behind it\n"),
		sealedLine(t, batch.ID{Lane: newLane(), N: 1}, "web-01", "b.log", "beside it\n"),
	}}
	p := startPeer(t, away, a, o)
	for _, b := range o.batches {
		if v, ok := p.verdict(b.ID, patience); !ok || v.Code != transport.Taken {
			t.Fatalf("batch %v at the relay: %v, %v", b.ID, v, ok)
		}
	}
	arrives(t, filepath.Join(g.Out(), "web-01/a.log"), []byte("behind it\n"))
	arrives(t, filepath.Join(g.Out(), "web-01/b.log"), []byte("beside it\n"))
	for _, path := range []string{"web-02/a.log", "web-02"} {
		if _, err := os.Stat(filepath.Join(g.Out(), path)); err == nil {
			t.Errorf("%s was written", path)
		}
	}
	dead, err := filepath.Glob(filepath.Join(g.State(), "receive/dead/*.dead"))
	must(t, err)
	t.Logf("%d dead letters, the relay holds %d bytes", len(dead), statusOf(t, a).backlog())
	if len(dead) == 0 {
		t.Error("the batch that cannot be read is no dead letter")
	}
	must(t, g.Stop())
	must(t, a.Kill())
}
