package capture

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ftfuse/mount/spool"
	"ftfuse/queue"
)

// lineStore is a journal and a file in memory, or on disk: n writes of size bytes each,
// taken from text over and over.
type lineStore struct {
	n       uint64
	size    int64
	writers uint64
	more    []string // paths of files 2 and up, which are written to in turns with file 1
	text    []byte
	f       *os.File
	freed   chan uint64
}

func (s *lineStore) Begin(uint64) spool.Recovery { return spool.Recovery{From: 1} }
func (s *lineStore) Next() uint64                { return s.n + 1 }

func (s *lineStore) Entries(dst []spool.Entry, from uint64) []spool.Entry {
	files := uint64(1 + len(s.more))
	for ; from <= s.n && len(dst) < cap(dst); from++ {
		file, n, path := (from-1)%files, (from-1)/files, "logs/access.log"
		if file > 0 {
			path = s.more[file-1]
		}
		dst = append(dst, spool.Entry{
			Seq: from, File: spool.Number(1 + file), Writer: 1 + from%s.writers, Off: int64(n) * s.size, Len: uint32(s.size), Path: path, PathID: 1 + uint32(file),
			PID: 100 + uint32(from%s.writers), Time: 1_700_000_000_000_000_000 + int64(from)*7000, Kind: spool.Write,
		})
	}
	return dst
}

func (s *lineStore) Wait(ctx context.Context, from uint64) error {
	if from > s.n {
		<-ctx.Done()
	}
	return ctx.Err()
}

func (s *lineStore) Committed(seq uint64) {
	if seq == s.n {
		s.freed <- seq
	}
}

func (s *lineStore) ReadAt(_ spool.Number, p []byte, off int64) (int, error) {
	if s.f != nil {
		return s.f.ReadAt(p, off%int64(len(s.text)))
	}
	for n := 0; n < len(p); {
		n += copy(p[n:], s.text[(off+int64(n))%int64(len(s.text)):])
	}
	return len(p), nil
}

func (s *lineStore) Size(spool.Number) int64                       { return 0 }
func (s *lineStore) SeekData(spool.Number, int64) (int64, error)   { return 0, io.EOF }
func (s *lineStore) Punch(spool.Number, int64)                     {}
func (s *lineStore) Settled(spool.Number, int64)                   {}
func (s *lineStore) TakeGone() []spool.Number                      { return nil }
func (s *lineStore) Files(func(spool.FileInfo) bool) error         { return nil }
func (s *lineStore) Poll(dst []spool.Growth) []spool.Growth        { return dst }
func (s *lineStore) NextPoll() (time.Duration, bool)               { return 0, false }
func (s *lineStore) Growing() <-chan struct{}                      { return nil }
func (s *lineStore) OpenMode(spool.Number) bool                    { return false }
func (s *lineStore) Owes(spool.Number) bool                        { return false }
func (s *lineStore) KernelWriter(spool.Number) (spool.Entry, bool) { return spool.Entry{}, false }
func (s *lineStore) DetachOrphans(bool) (int, error)               { return 0, nil }
func (s *lineStore) Unpunch(spool.Number)                          {}
func (s *lineStore) Lengthen(spool.Number, int64) error            { return nil }

func (s *lineStore) Lowest(_ spool.Number, _ uint64, none int64) (int64, bool) { return none, true }

func (s *lineStore) PunchAll(spool.Number, int64) (spool.Cut, error) { return spool.Cut{}, nil }

// discardQueue commits at once and keeps nothing.
type discardQueue struct{}

func (discardQueue) Submit(_ context.Context, t *queue.Txn) (queue.Status, error) {
	if t.Done != nil {
		t.Done(nil)
	}
	return queue.Fresh, nil
}
func (discardQueue) Flush(context.Context) error             { return nil }
func (discardQueue) Get(string) ([]byte, bool)               { return nil, false }
func (discardQueue) Range(string, func(string, []byte) bool) {}

type benchCase struct {
	line, size int
	writers    uint64
	paths      int // 0: one
	o          Options
}

func (c benchCase) String() string {
	return fmt.Sprintf("%dB-lines/%dB-writes/%dw", c.line, c.size, c.writers)
}

var benchCases = []benchCase{
	{line: 10, size: 10, writers: 1},
	{line: 10, size: 10, writers: 4},
	{line: 128, size: 128, writers: 1},
	{line: 1024, size: 1024, writers: 4},
	{line: 128, size: 4096, writers: 1},
	{line: 10, size: 65536, writers: 1},
	{line: 128, size: 65536, writers: 1},
	{line: 128, size: 65536, writers: 4},
	{line: 1000, size: 65536, writers: 4},
	{line: 4096, size: 65536, writers: 1},
}

func runBench(b *testing.B, c benchCase, file bool, q Queue) {
	text := bytes.Repeat(append(bytes.Repeat([]byte{'x'}, c.line-1), '\n'), (4<<20)/c.line)
	s := &lineStore{n: uint64(b.N), size: int64(c.size), writers: c.writers, text: text, freed: make(chan uint64, 1)}
	for i := range c.paths - 1 {
		s.more = append(s.more, fmt.Sprintf("logs/access-%d.log", i))
	}
	if file {
		name := filepath.Join(b.TempDir(), "spool")
		if err := os.WriteFile(name, append(text, text[:1<<20]...), 0o600); err != nil {
			b.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		s.f = f
	}
	c.o.Store, c.o.Queue, c.o.Host = s, q, "web-01"
	cp, err := New(c.o)
	if err != nil {
		b.Fatal(err)
	}
	if err := cp.recover1(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(c.size))
	b.ReportAllocs()
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	b.ResetTimer()
	go func() { ran <- cp.Run(ctx) }()
	select {
	case <-s.freed:
	case err := <-ran:
		b.Fatal(err)
	}
	b.StopTimer()
	cancel()
	<-ran
	n := cp.Stats()
	if n.Writes != uint64(b.N) {
		b.Fatalf("%d writes, want %d", n.Writes, b.N)
	}
	if c.paths > 0 {
		b.ReportMetric(float64(n.RecordBytes)/float64(n.Batches)/1024, "KiB/batch")
	}
}

// recover1 stands for Recover of a new spool, whose entries are then all taken by Run.
func (c *Capture) recover1() error {
	c.recovered = true
	return c.newEpoch()
}

// BenchmarkCapture is the capture alone: spool in memory, queue that discards.
func BenchmarkCapture(b *testing.B) {
	for _, c := range benchCases {
		b.Run(c.String(), func(b *testing.B) { runBench(b, c, false, discardQueue{}) })
	}
}

// BenchmarkCaptureFile reads a file in the page cache.
func BenchmarkCaptureFile(b *testing.B) {
	for _, c := range benchCases {
		b.Run(c.String(), func(b *testing.B) { runBench(b, c, true, discardQueue{}) })
	}
}

// BenchmarkCaptureQueue has the real queue behind it, and a consumer that acks at once.
func BenchmarkCaptureQueue(b *testing.B) {
	for _, c := range benchCases {
		b.Run(c.String(), func(b *testing.B) { runQueueBench(b, c) })
	}
}

// BenchmarkLanes is BenchmarkCaptureQueue of 64 files, by buckets.
func BenchmarkLanes(b *testing.B) {
	for _, buckets := range []int{1, 4, 16} {
		for _, size := range []int{128, 4096, 65536} {
			c := benchCase{line: 128, size: size, writers: 4, paths: 64, o: Options{Buckets: buckets}}
			b.Run(fmt.Sprintf("%d-buckets/%v", buckets, c), func(b *testing.B) { runQueueBench(b, c) })
		}
	}
}

func runQueueBench(b *testing.B, c benchCase) {
	q, err := queue.Open(b.TempDir(), queue.Options{Cursors: []string{"all"}})
	if err != nil {
		b.Fatal(err)
	}
	cur, err := q.Cursor("all")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			it, err := cur.Next(ctx)
			if err != nil {
				return
			}
			cur.Ack(it.Seq)
		}
	}()
	runBench(b, c, true, q)
	cancel()
	<-done
	if err := q.Close(); err != nil {
		b.Fatal(err)
	}
}
