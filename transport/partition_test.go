package transport

import (
	"context"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/batch"
)

// inOwnNetwork runs f on a thread with a network namespace of its own, whose loopback
// is up, and gives it a way to run programs there.
func inOwnNetwork(t *testing.T, f func(run func(stdin, name string, args ...string))) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft (apt-get install nftables)")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare the network: %v", err)
			return
		}
		run := func(stdin, name string, args ...string) {
			cmd := exec.Command(name, args...)
			cmd.Stdin = strings.NewReader(stdin)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s %v: %v: %s", name, args, err, out)
			}
		}
		run("", "ip", "link", "set", "lo", "up")
		f(run)
	}()
	<-done
}

// TestPartition drops every packet between a client and a server, as a pulled cable
// does: no FIN, no RST, no acknowledgement from any kernel. Both notice within
// DeadAfter and a heartbeat or two; the server does so even while its handler blocks
// and nothing is read. When packets pass again everything arrives.
func TestPartition(t *testing.T) {
	inOwnNetwork(t, func(run func(stdin, name string, args ...string)) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Error(err)
			return
		}
		target := ln.Addr().(*net.TCPAddr)
		h, src := newTestHandler(), newTestSource()
		handlerLetGo := make(chan time.Time, 1)
		blockOn := uint64(2)
		entered := make(chan struct{}, 1)
		h.before = func(ctx context.Context, b batch.Sealed) *Verdict {
			if b.ID.N != blockOn || b.Flags&batch.FlagResent != 0 {
				return nil
			}
			entered <- struct{}{}
			<-ctx.Done()
			handlerLetGo <- time.Now()
			return &Verdict{Code: Busy}
		}
		s := serveOn(t, ln, ServerOptions{}, h)
		// Sockets belong to the namespace of the thread that makes them: dial from here.
		conns, want := make(chan net.Conn), make(chan struct{})
		c := connect(t, ClientOptions{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case want <- struct{}{}:
				return <-conns, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}, src)
		dial := func() {
			<-want
			nc, err := dialHere(target)
			if err != nil {
				t.Errorf("dial: %v", err)
			}
			conns <- nc
		}
		dial()
		src.push(testBatch(testLane(1), 1, []byte("a")), testBatch(testLane(1), 2, []byte("b")))
		<-entered
		start := time.Now()
		port := portOf(target)
		run("table inet cut {\nchain in {\ntype filter hook input priority 0\ntcp dport "+port+" drop\ntcp sport "+port+" drop\n}\n}\n", "nft", "-f", "-")
		var let time.Time
		select {
		case let = <-handlerLetGo:
		case <-time.After(testLimit):
			t.Error("the handler was not let go")
			return
		}
		t.Logf("the server let its blocked handler go %v after the cut; DeadAfter %v", let.Sub(start), testDeadAfter)
		if d := let.Sub(start); d > (userTimeouts+3)*testDeadAfter {
			t.Errorf("the server noticed after %v", d)
		}
		await(t, nil, "both to notice", func() bool { return c.Stats().Failures > 0 && len(s.Stats().Peers) == 0 })
		run("", "nft", "delete", "table", "inet", "cut")
		dial()
		src.awaitAcked(t, 2)
	})
}

func portOf(a *net.TCPAddr) string { return strings.TrimPrefix(a.String(), "127.0.0.1:") }

// dialHere connects from the calling thread's namespace.
func dialHere(to *net.TCPAddr) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "client")
	defer f.Close()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}
