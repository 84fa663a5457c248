package transport

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What the design promises of detection, with the default timings.
const (
	killedWithin = time.Second
	silentWithin = 5 * time.Second
)

// startServerProcess runs a server as a process of its own; see runServerProcess.
func startServerProcess(t *testing.T) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverProcess+"="+t.TempDir()+"/taken")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, strings.TrimSpace(line)
}

// lossOf starts a client with the default timings and returns the ends of its connections.
func lossOf(t *testing.T, o ClientOptions, src Source) <-chan StateChange {
	t.Helper()
	lost := make(chan StateChange, 100)
	o.Heartbeat, o.DeadAfter = DefaultHeartbeat, DefaultDeadAfter
	o.OnState = func(ch StateChange) {
		if ch.State == StateWaiting {
			select {
			case lost <- ch:
			default:
			}
		}
	}
	connect(t, o, src)
	return lost
}

func awaitLoss(t *testing.T, lost <-chan StateChange, since time.Time, within time.Duration, want Why) {
	t.Helper()
	select {
	case ch := <-lost:
		took := ch.At.Sub(since)
		t.Logf("noticed as %v after %v", ch.Why, took)
		if want != "" && ch.Why != want || took > within {
			t.Errorf("noticed as %v (%v) after %v, want %v within %v", ch.Why, ch.Err, took, want, within)
		}
	case <-time.After(testLimit):
		t.Error("not noticed at all")
	}
}

// TestDeadServersAreNoticedInTime kills or stops a real server, under load and at rest: a
// killed one is left within a second, a frozen one, whose kernel goes on acknowledging,
// within five.
func TestDeadServersAreNoticedInTime(t *testing.T) {
	for _, c := range []struct {
		name   string
		signal syscall.Signal
		within time.Duration
		why    Why
	}{{"killed", syscall.SIGKILL, killedWithin, WhyReset}, {"stopped", syscall.SIGSTOP, silentWithin, WhySilent}} {
		for _, load := range []string{"at rest", "under load"} {
			t.Run(c.name+" "+load, func(t *testing.T) {
				t.Parallel()
				cmd, addr := startServerProcess(t)
				src := newTestSource()
				lost := lossOf(t, ClientOptions{Address: addr, Logger: discard}, src)
				pushMany(src, 1, 10)
				src.awaitAcked(t, 1)
				if load == "under load" {
					data := make([]byte, 64<<10)
					for n := range uint64(4000) {
						src.push(testBatch(testLane(1), n+2, data))
					}
					src.awaitAcked(t, 500)
				}
				start := time.Now()
				if err := cmd.Process.Signal(c.signal); err != nil {
					t.Fatal(err)
				}
				awaitLoss(t, lost, start, c.within, c.why)
			})
		}
	}
}

// TestHalfOpenConnectionsAreNoticedInTime drops the packets of one direction only. The
// client notices within five seconds either way: by itself where it hears nothing more
// (also where the server's packets pass: without acknowledgements its kernel soon sends
// nothing new), or by the reset with which the server lets go, as it does too.
func TestHalfOpenConnectionsAreNoticedInTime(t *testing.T) {
	for name, c := range map[string]struct {
		rule string
		why  Why
	}{
		"to the client": {"tcp sport PORT drop", WhySilent},
		"to the server": {"tcp dport PORT drop", ""},
	} {
		t.Run(name, func(t *testing.T) {
			inOwnNetwork(t, func(run func(stdin, name string, args ...string)) {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Error(err)
					return
				}
				target := ln.Addr().(*net.TCPAddr)
				s := serveOn(t, ln, ServerOptions{Heartbeat: DefaultHeartbeat, DeadAfter: DefaultDeadAfter}, newTestHandler())
				nc, err := dialHere(target) // sockets belong to the namespace of the thread that makes them
				if err != nil {
					t.Error(err)
					return
				}
				first := make(chan net.Conn, 1)
				first <- nc
				src := newTestSource()
				lost := lossOf(t, ClientOptions{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
					select {
					case nc := <-first:
						return nc, nil
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				}}, src)
				pushMany(src, 1, 10)
				src.awaitAcked(t, 1)
				start := time.Now()
				rule := strings.ReplaceAll(c.rule, "PORT", portOf(target))
				run("table inet cut {\nchain in {\ntype filter hook input priority 0\n"+rule+"\n}\n}\n", "nft", "-f", "-")
				src.push(testBatch(testLane(1), 2, []byte("x")))
				awaitLoss(t, lost, start, silentWithin, c.why)
				await(t, nil, "the server to let go", func() bool { return len(s.Stats().Peers) == 0 })
				if took := time.Since(start); took > silentWithin+time.Second {
					t.Errorf("the server let go after %v", took)
				}
			})
		})
	}
}
