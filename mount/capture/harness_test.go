package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/mount/spool"
	"ftfuse/queue"
)

// memQueue keeps what is committed in memory, as the real one does on disk: what was
// submitted and not committed is lost by crash. Nothing is committed while it is held.
type memQueue struct {
	mu      sync.Mutex
	cond    *sync.Cond
	kv      map[string][]byte // as of the newest submitted
	disk    map[string][]byte // as of the newest committed
	batches []batch.Sealed    // committed
	pending []*queue.Txn
	held    bool
	dead    bool
	full    bool // Submit blocks
	refuse  error
	commits int
	rewrite int64 // bytes of values below pend/
	discard bool
	seen    func(bytes int) // optional: the batches of each transaction
	done    chan struct{}
	last    map[batch.Lane]uint64
	t       testing.TB
}

func newMemQueue(t testing.TB) *memQueue {
	q := &memQueue{t: t, kv: map[string][]byte{}, disk: map[string][]byte{}, last: map[batch.Lane]uint64{}}
	q.cond = sync.NewCond(&q.mu)
	q.start()
	return q
}

func (q *memQueue) start() {
	q.done = make(chan struct{})
	go q.run()
}

func (q *memQueue) run() {
	defer close(q.done)
	for {
		q.mu.Lock()
		for !q.dead && (q.held || len(q.pending) == 0) {
			q.cond.Wait()
		}
		if q.dead {
			q.mu.Unlock()
			return
		}
		group := q.pending
		q.pending = nil
		for _, t := range group {
			q.commit(t)
		}
		q.commits++
		q.mu.Unlock()
		for _, t := range group {
			if t.Done != nil {
				t.Done(nil)
			}
		}
	}
}

// commit needs q.mu.
func (q *memQueue) commit(t *queue.Txn) {
	n := 0
	for _, e := range t.Entries {
		s := e.Batch
		n += len(s.Data)
		if want := q.last[s.ID.Lane] + 1; s.ID.N != want {
			q.t.Errorf("batch %v, want number %d", s.ID, want)
		}
		q.last[s.ID.Lane] = s.ID.N
		if !q.discard {
			q.batches = append(q.batches, s)
		}
	}
	if q.seen != nil {
		q.seen(n)
	}
	for _, v := range t.Set {
		apply(q.disk, v)
		if strings.HasPrefix(v.Key, prefixPend) {
			q.rewrite += int64(len(v.Value))
		}
	}
}

func apply(m map[string][]byte, v queue.KV) {
	if v.Value == nil {
		delete(m, v.Key)
	} else {
		m[v.Key] = v.Value
	}
}

func (q *memQueue) Submit(ctx context.Context, t *queue.Txn) (queue.Status, error) {
	stop := context.AfterFunc(ctx, func() { q.mu.Lock(); q.cond.Broadcast(); q.mu.Unlock() })
	defer stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refuse != nil && !t.Beyond && len(t.Entries) > 0 {
		return 0, q.refuse
	}
	for q.full && !t.Beyond && !q.dead && len(t.Entries) > 0 {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		q.cond.Wait()
	}
	if q.dead {
		return 0, queue.ErrClosed
	}
	for _, v := range t.Set {
		apply(q.kv, v)
	}
	q.pending = append(q.pending, t)
	q.cond.Broadcast()
	return queue.Fresh, nil
}

func (q *memQueue) Flush(ctx context.Context) error {
	done := make(chan error, 1)
	if _, err := q.Submit(ctx, &queue.Txn{Done: func(err error) { done <- err }}); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (q *memQueue) Get(key string) ([]byte, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	v, ok := q.kv[key]
	return v, ok
}

func (q *memQueue) Range(prefix string, fn func(string, []byte) bool) {
	q.mu.Lock()
	var keys []string
	for k := range q.kv {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	q.mu.Unlock()
	sort.Strings(keys)
	for _, k := range keys {
		v, _ := q.Get(k)
		if !fn(k, v) {
			return
		}
	}
}

func (q *memQueue) set(fn func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	fn()
	q.cond.Broadcast()
}

// crash loses what is not committed; reopen goes on with the rest.
func (q *memQueue) crash() {
	q.set(func() { q.dead = true })
	<-q.done
}

func (q *memQueue) reopen() {
	q.set(func() {
		q.pending, q.dead, q.held, q.full, q.refuse = nil, false, false, false, nil
		q.kv = map[string][]byte{}
		for k, v := range q.disk {
			q.kv[k] = v
		}
	})
	q.start()
}

// rig is a spool, a queue and a capture between them, on real files.
type rig struct {
	testing.TB
	dir    string
	q      *memQueue
	s      *spool.Store
	c      *Capture
	o      Options
	so     spool.Options
	cancel context.CancelFunc
	ran    chan error
	clock  int64
	files  map[string]*spool.File
	wrap   func(*spool.Store) Store // optional
}

func newRig(t testing.TB, o Options) *rig {
	r := &rig{TB: t, dir: t.TempDir(), q: newMemQueue(t), o: o, files: map[string]*spool.File{}, clock: 1_700_000_000_000_000_000}
	if r.o.Host == "" {
		r.o.Host = "web-01"
	}
	t.Cleanup(func() { r.crash() })
	return r
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	r.Cleanup(cancel)
	return ctx
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// open opens the spool and makes a capture that is not recovered yet.
func (r *rig) open() {
	r.Helper()
	var err error
	r.s, err = spool.Open(r.dir, r.so)
	r.must(err)
	r.o.Store, r.o.Queue = r.s, r.q
	if r.wrap != nil {
		r.o.Store = r.wrap(r.s)
	}
	r.c, err = New(r.o)
	r.must(err)
}

// start recovers and runs.
func (r *rig) start() {
	r.Helper()
	r.open()
	r.must(r.c.Recover(r.ctx(), nil))
	r.run()
}

func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.ran = cancel, make(chan error, 1)
	c, ran := r.c, r.ran
	go func() { ran <- c.Run(ctx) }()
}

// crash is kill -9: what the queue has not committed is lost, what is in the spool
// stays.
func (r *rig) crash() error {
	if r.s == nil {
		return nil
	}
	r.q.crash()
	var err error
	if r.cancel != nil {
		r.cancel()
		err = <-r.ran
	}
	r.s.Close()
	r.s, r.c, r.cancel = nil, nil, nil
	clear(r.files)
	return err
}

// restart is crash, and a new start.
func (r *rig) restart() {
	r.Helper()
	r.crash()
	r.q.reopen()
	r.start()
}

func (r *rig) file(path string) *spool.File {
	r.Helper()
	if f := r.files[path]; f != nil {
		return f
	}
	_, n, err := r.s.Lookup(path)
	var f *spool.File
	if err == nil {
		f, err = r.s.Acquire(n)
	} else {
		f, err = r.s.Create(path, 0o644, 0, 0)
	}
	r.must(err)
	r.files[path] = f
	return f
}

func (r *rig) writer(path string) *spool.Handle {
	r.Helper()
	h, err := r.s.OpenHandle(r.file(path), path, spool.PerWrite, &spool.Meta{})
	r.must(err)
	return h
}

func (r *rig) meta() *spool.Meta {
	r.clock++
	return &spool.Meta{PID: 4711, UID: 33, GID: 34, Time: r.clock}
}

func (r *rig) write(h *spool.Handle, data string) {
	r.Helper()
	n, err := h.Write([]byte(data), 0, true, r.meta())
	for errors.Is(err, spool.ErrJournalFull) {
		<-r.s.Changed()
		n, err = h.Write([]byte(data), 0, true, r.meta())
	}
	if err != nil || n != len(data) {
		r.Fatalf("write %d bytes: %d, %v", len(data), n, err)
	}
}

func (r *rig) drain() {
	r.Helper()
	r.must(r.c.DrainAll(r.ctx()))
}

// rec is a record as an output sees it.
type rec struct {
	path, data string
	flags      uint16
	pid        uint32
	time       int64
}

// records returns all committed records.
func (r *rig) records() []rec {
	r.Helper()
	r.q.mu.Lock()
	batches := append([]batch.Sealed(nil), r.q.batches...)
	r.q.mu.Unlock()
	var all []rec
	for _, s := range batches {
		if batch.Checksum(s.Data) != s.CRC {
			r.Fatalf("batch %v: CRC", s.ID)
		}
		rd, err := record.Open(s)
		r.must(err)
		for {
			x, err := rd.Next()
			if err == io.EOF {
				break
			}
			r.must(err)
			all = append(all, rec{x.Path, string(x.Data), x.Flags, x.PID, x.Time})
		}
	}
	return all
}

// output is what a line output of path has: the bytes, and line ends where Break asks.
func (r *rig) output(path string) string {
	r.Helper()
	var b bytes.Buffer
	for _, x := range r.records() {
		if x.path != path {
			continue
		}
		if x.data == "" && x.flags&record.PieceLast != 0 {
			continue
		}
		if x.flags&record.Break != 0 && b.Len() > 0 && b.Bytes()[b.Len()-1] != '\n' {
			b.WriteByte('\n')
		}
		b.WriteString(x.data)
	}
	return b.String()
}

func (x rec) String() string {
	d := x.data
	if len(d) > 40 {
		d = d[:20] + "..." + d[len(d)-17:]
	}
	return fmt.Sprintf("%s %q flags %#x pid %d", x.path, d, x.flags, x.pid)
}

func (r *rig) want(path, want string) {
	r.Helper()
	if got := r.output(path); got != want {
		i := 0
		for i < len(got) && i < len(want) && got[i] == want[i] {
			i++
		}
		r.Errorf("output of %s differs at byte %d (%d bytes, want %d): got %.60q, want %.60q", path, i, len(got), len(want), got[i:], want[i:])
	}
}
