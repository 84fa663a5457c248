package transport

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy stands between a client and a server and does what networks do.
type proxy struct {
	ln     net.Listener
	target atomic.Pointer[string]
	frozen chan struct{} // closed: nothing is forwarded any more, nothing is closed
	done   chan struct{} // closed at the end of the test

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	mangle func(conn int, up bool, offset int64, p []byte) (keep int, cut bool)
	count  int
	wg     sync.WaitGroup
}

// newProxy forwards to target until the test ends. mangle, if set, sees each piece:
// up is from client to server, offset counts the bytes of that direction; it may change
// p, forward only keep of its bytes and then cut the connection.
func newProxy(t testing.TB, target string, mangle func(conn int, up bool, offset int64, p []byte) (int, bool)) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, frozen: make(chan struct{}), done: make(chan struct{}), conns: make(map[net.Conn]struct{}), mangle: mangle}
	p.target.Store(&target)
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		ln.Close()
		close(p.done)
		p.cutAll()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.ln.Addr().String() }

func (p *proxy) accept() {
	for {
		in, err := p.ln.Accept()
		if err != nil {
			return
		}
		out, err := new(net.Dialer).DialContext(context.Background(), "tcp", *p.target.Load())
		if err != nil {
			in.Close()
			continue
		}
		p.mu.Lock()
		p.count++
		n := p.count
		p.conns[in], p.conns[out] = struct{}{}, struct{}{}
		p.mu.Unlock()
		p.wg.Go(func() { p.pump(n, true, in, out) })
		p.wg.Go(func() { p.pump(n, false, out, in) })
	}
}

func (p *proxy) pump(conn int, up bool, from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 32<<10)
	var offset int64
	for {
		n, err := from.Read(buf)
		select {
		case <-p.frozen:
			_, _ = io.Copy(io.Discard, from) // the kernel goes on acknowledging, as it does for a stopped process
			<-p.done                         // nor does its closing come through
			return
		default:
		}
		keep, cut := n, false
		if p.mangle != nil && n > 0 {
			keep, cut = p.mangle(conn, up, offset, buf[:n])
		}
		offset += int64(n)
		if _, werr := to.Write(buf[:keep]); werr != nil || err != nil || cut {
			return
		}
	}
}

func (p *proxy) freeze() { close(p.frozen) }

func (p *proxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		abort(c)
		delete(p.conns, c)
	}
}
