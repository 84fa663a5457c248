package relay

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/internal/roletest"
	"ftfuse/queue"
	"ftfuse/transport"
)

// feeder is a mount without files: it makes batches, and gives them to a client until
// they are acked. What becomes final moves its horizon.
type feeder struct {
	*changes
	lane batch.Lane
	b    *record.Builder
	tls  func() *tls.Config // nil: plain TCP
	host string             // what it calls itself; "": h
	says uint64             // the horizon that it claims, whatever is final; 0: what is

	queue   []batch.Sealed
	next    int
	n       uint64
	acked   map[uint64]bool
	final   batch.Ranges
	refused []transport.Verdict
	skips   transport.SkipSet // to tell
	skipped transport.SkipSet // heard of
}

func newFeeder(origin byte) *feeder {
	return &feeder{
		changes: newChanges(), acked: map[uint64]bool{}, b: record.NewBuilder(1 << 20),
		lane: batch.Lane{Origin: batch.Origin{origin}, Epoch: batch.Epoch{Counter: 1, Random: 7}},
	}
}

// seal makes a batch of one record without giving it to the client.
func (f *feeder) seal(host, path, data string) batch.Sealed {
	f.Lock()
	f.n++
	n := f.n
	f.Unlock()
	if !f.b.Add(&record.Attr{Host: host, Path: path, PID: 1, UID: 10, GID: 20}, []byte(data)) {
		panic("a test's record does not fit")
	}
	return f.b.Seal(batch.ID{Lane: f.lane, N: n}, time.Now().UnixNano())
}

func (f *feeder) send(b batch.Sealed) {
	f.Lock()
	defer f.Unlock()
	f.queue = append(f.queue, b)
	f.wake()
}

// add sends a batch of one line.
func (f *feeder) add(path, line string) { f.send(f.seal("h", path, line+"\n")) }

func (f *feeder) Next(ctx context.Context) (uint64, batch.Sealed, error) {
	for {
		f.Lock()
		if f.next < len(f.queue) {
			f.next++
			seq, b := uint64(f.next), f.queue[f.next-1]
			f.Unlock()
			return seq, b, nil
		}
		ch := f.ch
		f.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return 0, batch.Sealed{}, ctx.Err()
		}
	}
}

func (f *feeder) Acked(seq uint64) {
	f.Lock()
	defer f.Unlock()
	f.acked[seq] = true
	f.wake()
}

func (f *feeder) Final(lane batch.Lane, r []batch.Range) {
	f.Lock()
	defer f.Unlock()
	for _, x := range r {
		f.final.AddRange(x)
	}
	f.wake()
}

func (f *feeder) Refused(_ uint64, v transport.Verdict) {
	f.Lock()
	defer f.Unlock()
	f.refused = append(f.refused, v)
	f.wake()
}

func (f *feeder) Horizon() []transport.LaneHorizon {
	f.Lock()
	defer f.Unlock()
	return []transport.LaneHorizon{{Lane: f.lane, Below: max(f.final.Next(), f.says)}}
}

func (f *feeder) Skipped(lane batch.Lane, s []transport.Skip) {
	f.skipped.Add(lane, s...)
	f.Lock()
	defer f.Unlock()
	f.wake()
}

func (f *feeder) Skips() []transport.LaneSkips { return f.skips.All() }

// expect waits for a state of the feeder.
func (f *feeder) expect(t testing.TB, what string, ok func() bool) {
	t.Helper()
	f.until(t, what, ok, func() string {
		return fmt.Sprintf("%d batches, %d acked, final %v, refused %v", len(f.queue), len(f.acked), f.final.String(), f.refused)
	})
}

func (f *feeder) allAcked() bool { return len(f.acked) == len(f.queue) }
func (f *feeder) allFinal() bool { return f.final.Count() == uint64(len(f.queue)) }

// connect runs a client until the test ends, or stop is called.
func (f *feeder) connect(t testing.TB, addr string) (stop func()) {
	c := transport.NewClient(transport.ClientOptions{
		Identity: transport.Identity{Node: batch.Node(f.lane.Origin), Host: cmp.Or(f.host, "h"), Role: "mount", Product: "test"},
		Address:  addr, MinWait: 5 * time.Millisecond, MaxWait: 50 * time.Millisecond, Heartbeat: 100 * time.Millisecond,
		TLS: f.tls, Logger: slog.New(slog.DiscardHandler),
	}, f)
	return background(t, "client", c.Run)
}

// aggregator is a receiver without files: it takes each id once, and says what is final.
type aggregator struct {
	*changes
	t      testing.TB
	addr   string
	node   batch.Node
	server *transport.Server
	stop   func()

	tls       func() *tls.Config // nil: plain TCP
	admission *transport.Admission

	set     *queue.DeliveredSet
	taken   []batch.Sealed
	content map[batch.ID]string // of what was taken
	count   int                 // of taken
	discard bool                // only count, and say nothing is final
	hold    bool                // final is not said
	refuse  transport.Code      // every batch, for that; 0: none
	horizon map[batch.Lane]uint64
	skipped transport.SkipSet
}

var _ transport.Handler = (*aggregator)(nil)

func newAggregator(t testing.TB, id byte) *aggregator {
	a := &aggregator{
		changes: newChanges(), t: t, addr: roletest.FreePort(t), node: node(id),
		set: queue.NewDeliveredSet(), content: map[batch.ID]string{}, horizon: map[batch.Lane]uint64{},
	}
	a.start()
	return a
}

// start listens until the test ends, or stop is called.
func (a *aggregator) start() {
	a.t.Helper()
	ln, err := net.Listen("tcp", a.addr)
	must(a.t, err)
	a.server = transport.NewServer(transport.ServerOptions{
		Identity: transport.Identity{Node: a.node, Host: "aggregator", Role: "receive", Product: "test"},
		TLS:      a.tls, Admission: func() *transport.Admission { return a.admission },
	}, a)
	server := a.server
	a.stop = background(a.t, "aggregator", func(ctx context.Context) error { return server.Serve(ctx, ln) })
}

func (a *aggregator) Batch(_ context.Context, _ transport.Peer, b batch.Sealed, reply func(transport.Verdict)) {
	a.Lock()
	defer a.Unlock()
	known, conflict := a.set.Look(b.ID, b.CRC)
	switch {
	case a.refuse != 0:
		reply(transport.Verdict{Code: a.refuse, Text: "a test"})
		return
	case conflict:
		reply(transport.Verdict{Code: transport.Conflict, Text: "another content"})
		return
	case known:
		reply(transport.Verdict{Code: transport.Duplicate})
	default:
		a.set.Add(b.ID, b.CRC)
		a.count++
		if a.discard {
			reply(transport.Verdict{Code: transport.Taken})
			a.wake()
			return
		}
		a.taken = append(a.taken, b)
		a.content[b.ID] = string(b.Data)
		reply(transport.Verdict{Code: transport.Taken})
	}
	if !a.hold {
		a.server.Final(b.ID)
	}
	a.wake()
}

func (a *aggregator) Horizon(_ transport.Peer, lane batch.Lane, below uint64, _ bool) {
	a.Lock()
	defer a.Unlock()
	a.horizon[lane] = max(a.horizon[lane], below)
	ranges := a.set.Ranges(lane)
	if all := ranges.All(); !a.hold && len(all) > 0 {
		a.server.FinalRanges(lane, all...)
	}
	a.wake()
}

func (a *aggregator) Skip(_ transport.Peer, lane batch.Lane, s []transport.Skip) {
	a.skipped.Add(lane, s...)
	a.Lock()
	defer a.Unlock()
	a.wake()
}

// finish says that all is final, now and from now on.
func (a *aggregator) finish() {
	a.Lock()
	defer a.Unlock()
	a.hold = false
	for _, lane := range a.set.Lanes() {
		ranges := a.set.Ranges(lane)
		a.server.FinalRanges(lane, ranges.All()...)
	}
}

// expect waits for a state of the aggregator.
func (a *aggregator) expect(what string, ok func() bool) {
	a.t.Helper()
	a.until(a.t, what, ok, func() string { return fmt.Sprintf("%d batches, horizons %v", len(a.taken), a.horizon) })
}

func (a *aggregator) has(n int) func() bool { return func() bool { return len(a.taken) >= n } }

// check compares what was taken with what f sent: every byte once.
func (a *aggregator) check(f *feeder) {
	a.t.Helper()
	f.Lock()
	defer f.Unlock()
	a.Lock()
	defer a.Unlock()
	if len(a.taken) != len(f.queue) {
		a.t.Errorf("%d batches were taken, want %d", len(a.taken), len(f.queue))
	}
	for _, b := range f.queue {
		if got, ok := a.content[b.ID]; !ok || got != string(b.Data) {
			a.t.Errorf("batch %v: %d bytes, want %d", b.ID, len(got), len(b.Data))
		}
	}
}

// lineOf returns what is in a batch of one record.
func lineOf(t testing.TB, b batch.Sealed) string {
	t.Helper()
	r, err := record.Open(b)
	must(t, err)
	rec, err := r.Next()
	must(t, err)
	return string(rec.Data)
}
