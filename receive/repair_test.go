package receive

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"ftfuse/config"
	"ftfuse/queue"
)

// deafness is a way from a feeder to a receiver on which replies can be lost.
type deafness struct {
	to   string
	deaf atomic.Bool
	lost atomic.Int64 // bytes of replies
	ln   net.Listener
	wg   sync.WaitGroup
}

func newDeafness(t *testing.T, to string) *deafness {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	d := &deafness{to: to, ln: ln}
	ctx, cancel := context.WithCancel(context.Background())
	d.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d.wg.Go(func() { d.pass(ctx, c) })
		}
	})
	t.Cleanup(func() { ln.Close(); cancel(); d.wg.Wait() })
	return d
}

func (d *deafness) pass(ctx context.Context, c net.Conn) {
	defer c.Close()
	var dial net.Dialer
	s, err := dial.DialContext(ctx, "tcp", d.to)
	if err != nil {
		return
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { c.Close(); s.Close() })()
	d.wg.Go(func() {
		_, _ = io.Copy(s, c)
		s.Close()
	})
	b := make([]byte, 4096)
	for {
		n, err := s.Read(b)
		if d.deaf.Load() {
			d.lost.Add(int64(n))
		} else if _, werr := c.Write(b[:n]); werr != nil {
			return
		}
		if err != nil {
			return
		}
	}
}

// pages are the two meta pages of a queue's newest segment, and the root page of each.
type pages struct {
	f             *os.File
	size          int64
	newest, older int64 // offsets of the meta pages
	root          int64 // offset of the newest commit's root page
}

func openPages(t *testing.T, dir string) *pages {
	segs, err := filepath.Glob(dir + "/*.seg")
	must(t, err)
	f, err := os.OpenFile(segs[len(segs)-1], os.O_RDWR, 0)
	must(t, err)
	head := make([]byte, 80) // bbolt's page header, then magic, version, page size, flags, root ...
	_, err = f.ReadAt(head, 0)
	must(t, err)
	p := &pages{f: f, size: int64(binary.LittleEndian.Uint32(head[24:]))}
	var txid [2]uint64
	var root [2]uint64
	for i := range txid {
		_, err = f.ReadAt(head, int64(i)*p.size)
		must(t, err)
		txid[i], root[i] = binary.LittleEndian.Uint64(head[64:]), binary.LittleEndian.Uint64(head[32:])
	}
	k := 0
	if txid[1] > txid[0] {
		k = 1
	}
	p.newest, p.older, p.root = int64(k)*p.size, int64(1-k)*p.size, int64(root[k])*p.size
	return p
}

func (p *pages) damage(t *testing.T, at int64) {
	_, err := p.f.WriteAt([]byte("damage"), at+16)
	must(t, err)
}

// repaired is one case: two batches were committed one after the other, the second with
// lines for a file that the queue knows and for a new one, when the receiver was killed.
type repaired struct {
	damage  string // older: the older meta page; newest: the newest; commit: and its root page
	applied bool   // the second batch was written to its files
	acked   bool   // its source saw the ack
}

func (c repaired) String() string {
	return fmt.Sprintf("%s,applied=%v,acked=%v", c.damage, c.applied, c.acked)
}

// TestRepairedQueue: one of the two meta pages of the queue's newest segment is damaged
// while batches wait to be written. Nothing is lost and nothing stands twice, since the
// newest commit is found without its meta page. Where it cannot be found, what its source
// sends again may stand twice, and all that does is counted.
func TestRepairedQueue(t *testing.T) {
	for _, damage := range []string{"older", "newest", "commit"} {
		for i := range 4 {
			c := repaired{damage: damage, applied: i&1 != 0, acked: i&2 != 0}
			t.Run(c.String(), c.run)
		}
	}
}

func (c repaired) run(t *testing.T) {
	s := newSetup(t)
	every := s.CheckpointEvery
	s.CheckpointEvery = 1 << 40 // nothing is acked to the queue
	f := newFeeder(1)
	c.killed(t, s, f)

	dir := s.config().QueueDir(config.RoleReceive)
	p := openPages(t, dir)
	switch c.damage {
	case "older":
		p.damage(t, p.older)
	case "commit":
		p.damage(t, p.root)
		fallthrough
	case "newest":
		p.damage(t, p.newest)
	}
	must(t, p.f.Close())
	if err := RunWith(t.Context(), s.config(), testLogger(t), s.options()); !errors.Is(err, queue.ErrNewestDamaged) {
		t.Fatalf("a start with a damaged queue: %v", err)
	}
	rep, err := queue.Repair(dir)
	must(t, err)
	want := uint64(2)
	if c.damage == "commit" {
		want = 1
	}
	if r := rep.Repair; r == nil || r.StateSeq != want || r.Whole != (c.damage == "newest") {
		t.Fatalf("repair: %+v, want the state of entry %d", r, want)
	}

	s.CheckpointEvery = every
	log := &lockedBuffer{}
	x := startLog(t, s, slog.New(slog.NewJSONHandler(log, nil)))
	c.batch(f, 41, 60)
	f.until(t, "final acks", func() bool { return len(f.acked) == 3 && f.final.Contains(3) })
	c.check(t, s, readDoubts(t, log.Bytes()), x.r.Stats().PossibleDoubles)
	if _, ok := x.r.q.Get(queue.RepairedKey); ok {
		t.Error("the note of the repair is still there")
	}
	x.end()
}

// batch sends one batch with lines first to last for each file.
func (c repaired) batch(f *feeder, first, last int, files ...string) {
	if files == nil {
		files = []string{"app.log", "new.log"}
	}
	var recs []rec
	for i := first; i <= last; i++ {
		for _, name := range files {
			recs = append(recs, rec{host: "h", path: name, data: fmt.Sprintf("line %08d\n", i)})
		}
	}
	f.add(recs...)
}

// killed runs a receiver up to the kill.
func (c repaired) killed(t *testing.T, s setup, f *feeder) {
	way := newDeafness(t, s.Listen)
	f.connect(t, way.ln.Addr().String())
	points := ""
	if !c.applied {
		points = "output/append=pause@2"
	}
	p := spawn(t, s, points)
	c.batch(f, 1, 20, "app.log")
	f.until(t, "the first ack", f.allAcked)
	written := func(name string, lines int) func() bool {
		return func() bool { return len(countLinesIn(t, s.out("h", name))) == lines }
	}
	waitFor(t, "the first batch in its file", written("app.log", 20))
	way.deaf.Store(!c.acked)
	c.batch(f, 21, 40)
	if c.acked {
		f.until(t, "the second ack", f.allAcked)
	} else {
		waitFor(t, "the second ack on its way", func() bool { return way.lost.Load() > 0 })
	}
	if c.applied {
		waitFor(t, "the second batch in its files", func() bool { return written("app.log", 40)() && written("new.log", 20)() })
	}
	p.kill()
	way.deaf.Store(false)
}

// check compares the files, and what was counted, with what the case must have left.
func (c repaired) check(t *testing.T, s setup, doubts []doubt, counted uint64) {
	t.Helper()
	second, doubles := 1, 0
	if c.damage == "commit" {
		switch {
		case c.applied:
			doubles = 2 // one in each file
			if !c.acked {
				second = 2
			}
		case c.acked:
			second = 0 // acked and lost with its commit
		}
	}
	if len(doubts) != doubles || counted != uint64(doubles) {
		t.Errorf("%d possible doubles are counted, %d logged, want %d: %+v", counted, len(doubts), doubles, doubts)
	}
	for name, first := range map[string]int{"app.log": 1, "new.log": 21} {
		raw, err := os.ReadFile(s.out("h", name))
		must(t, err)
		got := countLinesIn(t, s.out("h", name))
		for i := first; i <= 60; i++ {
			line, want := fmt.Sprintf("line %08d\n", i), 1
			if i > 20 && i <= 40 {
				want = second
			}
			if got[line] != want {
				t.Errorf("%s: %q stands %d times, want %d", name, line, got[line], want)
			}
			if got[line] > 1 && !covered(doubts, s.out("h", name), bytes.Index(raw, []byte(line)), len(line)) {
				t.Errorf("%s: %q stands %d times and is not counted: %+v", name, line, got[line], doubts)
			}
			delete(got, line)
		}
		if len(got) > 0 {
			t.Errorf("%s: foreign: %v", name, got)
		}
	}
}

// doubt is one log line about possible doubles.
type doubt struct {
	Msg, File     string
	Offset, Bytes int
}

func readDoubts(t *testing.T, log []byte) (all []doubt) {
	t.Helper()
	for line := range bytes.Lines(log) {
		t.Logf("%s", bytes.TrimSpace(line))
		var d doubt
		must(t, json.Unmarshal(line, &d))
		if strings.HasPrefix(d.Msg, "bytes may stand twice: ") {
			all = append(all, d)
		}
	}
	return all
}

func covered(doubts []doubt, file string, at, n int) bool {
	for _, d := range doubts {
		if d.File == file && d.Offset <= at && at+n <= d.Offset+d.Bytes {
			return true
		}
	}
	return false
}

// lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}
