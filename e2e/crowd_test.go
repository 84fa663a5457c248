package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ftfuse/bench/rig"
)

// crowdSize is how many peers of each kind there are: 2,000 in all.
const crowdSize = 666

// crowdThreads is how many threads open a crowd's connections. (A thread for each connection, as
// Host.Do makes them, was too slow on a busy machine to keep up with the receiver, which throws each
// out after its 5 s.)
const crowdThreads = 64

// crowd is peers that connect and never finish a handshake: half say nothing, half say one
// byte now and then. Each connects again when it is thrown out.
type crowd struct {
	stop chan struct{}
	dial chan chan<- net.Conn // nil comes back where nobody answered
	wg   sync.WaitGroup
}

func startCrowd(from, dst *rig.Host, count int, dribble bool) *crowd {
	c := &crowd{stop: make(chan struct{}), dial: make(chan chan<- net.Conn)}
	for range crowdThreads {
		c.wg.Go(func() { _ = from.Do(func() error { c.dials(dst); return nil }) })
	}
	for range count {
		c.wg.Go(func() {
			for !c.stopped(0) {
				c.one(dribble)
			}
		})
	}
	return c
}

// dials opens connections in the namespace of its thread, until the end.
func (c *crowd) dials(dst *rig.Host) {
	for {
		select {
		case <-c.stop:
			return
		case back := <-c.dial:
			nc, err := net.DialTimeout("tcp", dst.Addr(port), time.Second)
			if err != nil {
				nc = nil
			}
			back <- nc
		}
	}
}

// stopped waits for the end, at most so long, and says whether it has come.
func (c *crowd) stopped(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c.stop:
		return true
	case <-t.C:
		return false
	}
}

// one is one connection, until either side ends it.
func (c *crowd) one(dribble bool) {
	back := make(chan net.Conn, 1)
	select {
	case <-c.stop:
		return
	case c.dial <- back:
	}
	nc := <-back
	if nc == nil {
		c.stopped(100 * time.Millisecond)
		return
	}
	defer nc.Close()
	begin := []byte("FTFUSE") // whatever: it never becomes a frame
	for i := 0; !c.stopped(time.Second); i++ {
		if dribble {
			if _, err := nc.Write(begin[i%len(begin) : i%len(begin)+1]); err != nil {
				return
			}
		}
		if err := nc.SetReadDeadline(time.Now()); err != nil {
			return
		}
		if _, err := nc.Read(make([]byte, 512)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

func (c *crowd) end() {
	close(c.stop)
	c.wg.Wait()
}

// 2,000 peers of which a third say nothing, a third dribble and a third are proper and idle
// cost a receiver less than 64 MiB, and lines of a good one go through beside them.
func TestACrowdOfIdlePeersCostsLittleAndDelaysNobody(t *testing.T) {
	s := newSite(t)
	g := s.add("g1", "receive", func(h *rig.Host) string {
		return fmt.Sprintf("[receive]\nlisten = %q\nmax_connections = 3000\nmax_connections_per_address = 3000\n[[receive.output]]\ndir = %q\n", h.Addr(port), h.Out())
	})
	s.aggs = append(s.aggs, g)
	s.source("s1", "", group{mode: "any", primary: []*rig.Host{g}})
	away := s.add("crowd", "", nil)
	s.start()
	src := filepath.Join(s.sources[0].Point(), "a.log")
	out := filepath.Join(g.Out(), "s1", "a.log")
	quiet := lineTimes(t, src, out, 50)
	before, err := rig.MemoryOf(g.Role.PID())
	must(t, err)
	watch := rig.StartWatch(g.Role.PID())

	silent, dribbling := startCrowd(away, g, crowdSize, false), startCrowd(away, g, crowdSize, true)
	defer func() { silent.end(); dribbling.end() }()
	for range crowdSize {
		startPeer(t, away, g, peerOptions{host: "idle", role: "mount"})
	}
	// All at once, on a machine that may be doing much else while the receiver throws them out.
	eventually(t, 4*patience, func() error {
		if n := connections(t, g); n < 3*crowdSize*9/10 { // those thrown out are on their way back
			return fmt.Errorf("%d connections, want about %d", n, 3*crowdSize)
		}
		return nil
	})
	crowded := lineTimes(t, src, out, 100)
	after := watch.Stop()[0]
	const most = 64 << 20
	if grew := after.RSS - before.RSS; grew > most {
		t.Errorf("2,000 idle peers cost %d MiB, want at most %d", grew>>20, most>>20)
	}
	ms := func(h *rig.Hist) string {
		return fmt.Sprintf("p50 %v, at most %v", h.Quantile(0.5).Round(time.Millisecond/10), h.Max().Round(time.Millisecond/10))
	}
	t.Logf("RSS %d MiB before, %d at most beside %d peers; a line took %s before, %s beside them", before.RSS>>20, after.RSS>>20, connections(t, g), ms(quiet), ms(crowded))
	if crowded.Quantile(0.5) > time.Second || crowded.Max() > 5*time.Second { // the crowd itself runs on the same CPUs
		t.Errorf("a good peer's line took %s", ms(crowded))
	}
}

// connections is how many established TCP connections the kernel has at a host's port.
func connections(t *testing.T, h *rig.Host) (n int) {
	t.Helper()
	must(t, h.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/tcp")
		for line := range strings.Lines(string(text)) {
			// local address, remote address, state: proc_pid_net(5)
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) && f[3] == "01" {
				n++
			}
		}
		return err
	}))
	return n
}

// lineTimes appends lines one after the other and returns how long each took to be in the
// output.
func lineTimes(t *testing.T, src, out string, count int) *rig.Hist {
	t.Helper()
	f, err := os.OpenFile(src, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(t, err)
	defer f.Close()
	var took rig.Hist
	want := int64(len(read(t, out)))
	line := append(bytes.Repeat([]byte("x"), 99), '\n')
	for range count {
		began := time.Now()
		_, err := f.Write(line)
		must(t, err)
		want += int64(len(line))
		_, err = rig.WaitSize(t.Context(), out, want, time.Millisecond, patience)
		must(t, err)
		took.Add(time.Since(began))
	}
	return &took
}
