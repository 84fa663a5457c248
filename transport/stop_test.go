package transport

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// stopOnLift is a connection that has its client stopped just before the deadlines of the
// handshake are lifted.
type stopOnLift struct {
	net.Conn
	stop    context.CancelFunc
	stopped chan struct{} // closed when the watcher has made writes return
	once    sync.Once
}

func (c *stopOnLift) SetWriteDeadline(at time.Time) error {
	err := c.Conn.SetWriteDeadline(at)
	if at.Before(time.Now()) {
		c.once.Do(func() { close(c.stopped) })
	}
	return err
}

func (c *stopOnLift) SetDeadline(at time.Time) error {
	if at.IsZero() {
		c.stop()
		<-c.stopped
	}
	return c.Conn.SetDeadline(at)
}

// TestStopAtTheEndOfTheHandshake: a client that is stopped just when its handshake is done
// ends, though its peer reads nothing that is written then.
func TestStopAtTheEndOfTheHandshake(t *testing.T) {
	welcome := (&hello{minVersion: 1, maxVersion: 1, node: testNode(0xee), maxData: 1 << 20}).append(nil, typeWelcome)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		fr := &frameReader{r: nc, lim: limits{meta: maxMeta}}
		_, _, _ = fr.next()
		_, _ = nc.Write(welcome)
		<-t.Context().Done() // reads no more
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	src := newTestSource()
	for n := range 500_000 { // 24 MB: more than the kernel takes
		src.horizon = append(src.horizon, LaneHorizon{laneNumber(n), 2})
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var nc net.Conn
	c := NewClient(ClientOptions{Address: "x:1", Logger: discard, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		inner, err := dialTo(ln.Addr().String())(ctx, "tcp", "")
		nc = inner
		return &stopOnLift{Conn: inner, stop: cancel, stopped: make(chan struct{})}, err
	}}, src)
	ended := make(chan struct{})
	go func() { _ = c.Run(ctx); close(ended) }()
	select {
	case <-ended:
	case <-time.After(testLimit / 4):
		t.Error("the client goes on writing")
		nc.Close()
		<-ended
	}
}
