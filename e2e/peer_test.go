package e2e

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/transport"
)

// peer is a sender that says what a test wants, over the real protocol: a node that is not
// what it seems.
type peer struct {
	mu       sync.Mutex
	give     []batch.Sealed
	given    int
	verdicts map[batch.ID]transport.Verdict // of what was refused; Code Taken: acked
	more     chan struct{}                  // closed and replaced at every verdict
	client   *transport.Client
	wait     func() // ends the client and waits for it
}

var _ transport.Source = (*peer)(nil)

// peerOptions say who a peer pretends to be.
type peerOptions struct {
	host, role string
	tls        func() *tls.Config
	batches    []batch.Sealed
}

// startPeer connects to dst from the network of `from`. It ends with the test.
func startPeer(t *testing.T, from, dst *rig.Host, o peerOptions) *peer {
	t.Helper()
	p := &peer{give: o.batches, verdicts: map[batch.ID]transport.Verdict{}, more: make(chan struct{})}
	identity := transport.Identity{Host: o.host, Role: o.role, Product: "e2e"}
	_, _ = rand.Read(identity.Node[:]) // never fails (crypto/rand)
	c := transport.NewClient(transport.ClientOptions{
		Identity: identity, Address: dst.Addr(port), TLS: o.tls, Dial: dialFrom(from),
	}, p)
	p.client = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx) // cancelled: nothing to say
	}()
	p.wait = func() { cancel(); <-done }
	t.Cleanup(p.wait)
	return p
}

// dialFrom connects from a host's network.
func dialFrom(h *rig.Host) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = h.Do(func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}

func (p *peer) Next(ctx context.Context) (uint64, batch.Sealed, error) {
	p.mu.Lock()
	if p.given < len(p.give) {
		defer p.mu.Unlock()
		p.given++
		return uint64(p.given), p.give[p.given-1], nil
	}
	p.mu.Unlock()
	<-ctx.Done()
	return 0, batch.Sealed{}, ctx.Err()
}

func (p *peer) Acked(seq uint64) { p.Refused(seq, transport.Verdict{Code: transport.Taken}) }

func (p *peer) Refused(seq uint64, v transport.Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.verdicts[p.give[seq-1].ID] = v
	close(p.more)
	p.more = make(chan struct{})
}

func (p *peer) Final(batch.Lane, []batch.Range)      {}
func (p *peer) Skipped(batch.Lane, []transport.Skip) {}
func (p *peer) Horizon() []transport.LaneHorizon     { return nil }
func (p *peer) Skips() []transport.LaneSkips         { return nil }

// verdict waits until the other side has said what becomes of a batch; false if it does not
// within limit.
func (p *peer) verdict(id batch.ID, limit time.Duration) (transport.Verdict, bool) {
	late := time.NewTimer(limit)
	defer late.Stop()
	for {
		p.mu.Lock()
		v, ok := p.verdicts[id]
		more := p.more
		p.mu.Unlock()
		if ok {
			return v, true
		}
		select {
		case <-more:
		case <-late.C:
			return transport.Verdict{}, false
		}
	}
}

// sealedLine is a batch with one line of a file of a host.
func sealedLine(t *testing.T, id batch.ID, host, path, line string) batch.Sealed {
	t.Helper()
	b := record.NewBuilder(1 << 20)
	if !b.Add(&record.Attr{Host: host, Path: path, Time: time.Now().UnixNano()}, []byte(line)) {
		t.Fatal("a line does not fit into a batch")
	}
	sealed := b.Seal(id, time.Now().UnixNano())
	sealed.Host = host
	return sealed
}

// newLane is a lane of a source that nobody knows.
func newLane() batch.Lane {
	var l batch.Lane
	_, _ = rand.Read(l.Origin[:]) // never fails (crypto/rand)
	l.Epoch = batch.Epoch{Counter: 1, Random: uint64(time.Now().UnixNano())}
	return l
}

// parseTag reads the name of a batch as %N writes it: origin-counter-random-route-bucket-n.
func parseTag(name tag) (batch.ID, error) {
	var id batch.ID
	f := strings.Split(string(name), "-")
	if len(f) != 6 || len(f[0]) != 32 {
		return id, fmt.Errorf("%q is no name of a batch", name)
	}
	if _, err := hex.Decode(id.Lane.Origin[:], []byte(f[0])); err != nil {
		return id, fmt.Errorf("%q: %w", name, err)
	}
	var numbers [5]uint64
	for i, base := range []int{10, 16, 10, 10, 10} {
		var err error
		if numbers[i], err = strconv.ParseUint(f[i+1], base, 64); err != nil {
			return id, fmt.Errorf("%q: %w", name, err)
		}
	}
	id.Lane.Epoch = batch.Epoch{Counter: numbers[0], Random: numbers[1]}
	id.Lane.Route, id.Lane.Bucket, id.N = uint32(numbers[2]), uint8(numbers[3]), numbers[4]
	return id, nil
}
