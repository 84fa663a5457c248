package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// rig is a Forwarder over a modelled queue, with real transport clients, and servers that
// answer as a test tells them. It lives in a synctest bubble.
type rig struct {
	t    *testing.T
	net  *simNet
	o    Options
	disk *simDisk
	q    *simQueue
	f    *Forwarder
	stop func() error
	log  bytes.Buffer
	slow time.Duration // that reading a head takes

	mu      sync.Mutex
	servers map[string]*peerServer
	finals  []string // as OnFinal was told
	skips   []string
}

// inBubble runs a test in virtual time, with a rig whose groups are g.
func inBubble(t *testing.T, fn func(r *rig), g ...GroupConfig) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{
			t: t, net: newSimNet(func() time.Duration { return time.Millisecond }), servers: map[string]*peerServer{},
			disk: newSimDisk(batch.Node{1}),
		}
		r.o = Options{
			Groups: g, Identity: transport.Identity{Node: r.disk.node, Host: "here", Role: "mount", Product: "test"},
			Logger: slog.New(slog.NewTextHandler(&r.log, &slog.HandlerOptions{ReplaceAttr: noTime})),
			Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
				return r.net.dial(ctx, "here", strings.TrimSuffix(address, simPort))
			},
			OnFinal: func(lane batch.Lane, rs []batch.Range) {
				set := setOf(rs)
				r.mu.Lock()
				defer r.mu.Unlock()
				r.finals = append(r.finals, fmt.Sprintf("%d:%s", lane.Epoch.Counter, set.String()))
			},
			OnSkip: func(lane batch.Lane, ss []transport.Skip) {
				r.mu.Lock()
				defer r.mu.Unlock()
				for i := range ss {
					r.skips = append(r.skips, fmt.Sprintf("%d:%s %s", lane.Epoch.Counter, ss[i].Ranges.String(), ss[i].Reason))
				}
			},
		}
		defer func() {
			if r.stop != nil {
				r.crash()
			}
			for name := range r.servers {
				r.down(name)
			}
			if t.Failed() {
				t.Log(r.log.String())
			}
		}()
		fn(r)
	})
}

func noTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// start starts the Forwarder on what is on the disk.
func (r *rig) start() {
	r.t.Helper()
	r.q = openSimQueue(r.disk, Cursors(r.o.Groups), func() time.Duration { return time.Millisecond }, mutantNone)
	r.q.slow = r.slow
	f, err := newForwarder(r.o, r.q)
	if err != nil {
		r.t.Fatal(err)
	}
	r.f = f
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	r.stop = func() error {
		cancel()
		return <-done
	}
}

// crash kills it.
func (r *rig) crash() {
	r.q.crash()
	r.net.kill("here")
	if err := r.stop(); err != nil && !errors.Is(err, queue.ErrClosed) {
		r.t.Errorf("Run: %v", err)
	}
	r.stop = nil
}

// peerServer is a next node.
type peerServer struct {
	r      *rig
	name   string
	server *transport.Server
	cancel func()
	answer func(b batch.Sealed) (transport.Verdict, bool) // false: none at all

	mu   sync.Mutex
	got  []batch.Sealed
	told []transport.LaneHorizon
	skip []string
}

// up starts a next node. answer nil takes everything.
func (r *rig) up(name string, node byte, answer func(batch.Sealed) (transport.Verdict, bool)) *peerServer {
	s := &peerServer{r: r, name: name, answer: answer}
	s.server = transport.NewServer(transport.ServerOptions{
		Identity: transport.Identity{Node: batch.Node{node}, Host: name, Role: "receive", Product: "test"},
	}, s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	ln := r.net.listen(name)
	go func() {
		defer close(done)
		_ = s.server.Serve(ctx, ln)
	}()
	s.cancel = func() {
		cancel()
		<-done
	}
	r.servers[name] = s
	return s
}

// down kills a next node.
func (r *rig) down(name string) {
	if s := r.servers[name]; s != nil {
		r.net.kill(name)
		s.cancel()
		delete(r.servers, name)
	}
}

func (s *peerServer) Batch(_ context.Context, _ transport.Peer, b batch.Sealed, reply func(transport.Verdict)) {
	v, ok := transport.Verdict{}, true
	if s.answer != nil {
		v, ok = s.answer(b)
	}
	s.mu.Lock()
	s.got = append(s.got, b)
	s.mu.Unlock()
	if ok {
		reply(v)
	}
}

func (s *peerServer) Horizon(_ transport.Peer, lane batch.Lane, below uint64, _ bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, transport.LaneHorizon{Lane: lane, Below: below})
}

func (s *peerServer) Skip(_ transport.Peer, lane batch.Lane, skips []transport.Skip) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range skips {
		s.skip = append(s.skip, fmt.Sprintf("%d:%s %s", lane.Epoch.Counter, skips[i].Ranges.String(), skips[i].Reason))
	}
}

// numbers lists what came, with ! where it was flagged resent.
func (s *peerServer) numbers() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, b := range s.got {
		n := fmt.Sprint(b.ID.N)
		if b.Flags&batch.FlagResent != 0 {
			n += "!"
		}
		out = append(out, n)
	}
	return strings.Join(out, " ")
}

// horizon is what was announced last of a lane; 0: nothing.
func (s *peerServer) horizon(lane batch.Lane) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range slices.Backward(s.told) {
		if h.Lane == lane {
			return h.Below
		}
	}
	return 0
}

// rigLane is a lane of this node.
func rigLane(epoch uint64) batch.Lane {
	return batch.Lane{Origin: batch.Origin{1}, Epoch: batch.Epoch{Counter: epoch, Random: 7}}
}

// submit queues batches first to last of a lane.
func (r *rig) submit(lane batch.Lane, first, last uint64) {
	r.t.Helper()
	for n := first; n <= last; n++ {
		r.submitContent(lane, n, fmt.Sprintf("%v/%d", lane, n))
	}
}

func (r *rig) submitContent(lane batch.Lane, n uint64, content string) {
	r.t.Helper()
	b := batch.Sealed{ID: batch.ID{Lane: lane, N: n}, CRC: batch.Checksum([]byte(content)), Host: "here", Records: 1, Payload: 10, Data: []byte(content)}
	if _, err := r.q.Submit(context.Background(), &queue.Txn{Entries: []queue.Entry{{Batch: b}}}); err != nil {
		r.t.Fatal(err)
	}
}

// pass lets time pass and everything settle.
func (r *rig) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// want compares.
func (r *rig) want(what, got, want string) {
	r.t.Helper()
	if got != want {
		r.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// waiting is how many batches the first cursor has not passed.
func (r *rig) waiting() uint64 { return r.q.Stats().Cursors[0].Waiting.Batches }

func pair(mode Mode) GroupConfig {
	return GroupConfig{Name: "g", Mode: mode, Primary: []string{"a" + simPort}, Secondary: []string{"b" + simPort}, FailbackAfter: 30 * time.Second}
}

func single() GroupConfig { return GroupConfig{Name: "g", Mode: Any, Primary: []string{"a" + simPort}} }

// conflictsOn answers that batches of these lanes were taken with another content before.
func conflictsOn(lanes ...batch.Lane) func(batch.Sealed) (transport.Verdict, bool) {
	return func(b batch.Sealed) (v transport.Verdict, _ bool) {
		if slices.Contains(lanes, b.ID.Lane) {
			v.Code = transport.Conflict
		}
		return v, true
	}
}

var never = func(batch.Sealed) (transport.Verdict, bool) { return transport.Verdict{}, false }
