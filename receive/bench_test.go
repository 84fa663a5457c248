package receive

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/transport"
)

// BenchmarkReceive is the role alone: batches of 1 MiB over loopback, until the last
// byte is in the output file, and (reported beside it) until all is synced and final.
// FTFUSE_BENCH_OUT and FTFUSE_BENCH_STATE put the output files and the queue elsewhere,
// such as /dev/shm, to see what the disk costs.
func BenchmarkReceive(b *testing.B) {
	for _, bc := range []struct {
		name    string
		write   int
		format  string
		file    string
		writers int
		rotate  config.Rotate
	}{
		{"64KiB", 64 << 10, "%L", "%H/%F", 4, config.Rotate{}},
		{"128B", 128, "%L", "%H/%F", 4, config.Rotate{}},
		{"64KiB-formatted", 64 << 10, "%T %H %P %L", "%H/%F", 4, config.Rotate{}},
		{"64KiB-unified", 64 << 10, "%L", "all", 4, config.Rotate{}},
		{"64KiB-rotated", 64 << 10, "%L", "%H/%F", 4, config.Rotate{Size: 32 << 20}},
		{"64KiB-rotated-zstd", 64 << 10, "%L", "%H/%F", 4, config.Rotate{Size: 32 << 20, Compress: config.RotateZstd}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			benchReceive(b, bc.write, bc.writers, func(o *config.Output) { o.Format, o.File, o.Rotate = bc.format, bc.file, bc.rotate })
		})
	}
}

func benchReceive(b *testing.B, write, writers int, change func(*config.Output)) {
	dir := b.TempDir()
	if d := os.Getenv("FTFUSE_BENCH_OUT"); d != "" {
		dir, _ = os.MkdirTemp(d, "rx")
		defer os.RemoveAll(dir)
	}
	s := newSetup(b, output1(dir+"/out", change))
	s.CheckpointEvery = 0
	if d := os.Getenv("FTFUSE_BENCH_STATE"); d != "" {
		s.State, _ = os.MkdirTemp(d, "rxs")
		defer os.RemoveAll(s.State)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan *Receiver, 1), make(chan error, 1)
	o := s.options()
	o.Ready = func(r *Receiver) { ready <- r }
	go func() {
		done <- RunWith(ctx, s.config(), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})), o)
	}()
	r := <-ready
	line := []byte(fmt.Sprintf("%-127s\n", "a line of 128 bytes"))
	data := bytes.Repeat(line, write/len(line))
	src := &benchSource{lane: batch.Lane{Origin: batch.Origin{1}, Epoch: batch.Epoch{Counter: 1}}, left: 512, data: data, writers: writers, done: make(chan struct{}), made: make(chan batch.Sealed, 16)}
	src.total = src.left
	go src.run()
	waitFor(b, "batches", func() bool { return len(src.made) == cap(src.made) })
	c := transport.NewClient(transport.ClientOptions{Identity: transport.Identity{Node: batch.Node{1}, Host: "s", Role: "mount"}, Address: s.Listen}, src)
	begin := time.Now()
	go c.Run(ctx)
	var size uint64
	waitFor(b, "the last byte", func() bool { return r.Stats().Batches == uint64(src.total) && r.sink.Drain(ctx) == nil })
	size = r.Stats().Bytes
	visible := time.Since(begin)
	<-src.done
	synced := time.Since(begin)
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(size)/1e6/visible.Seconds(), "MB/s-visible")
	b.ReportMetric(float64(size)/1e6/synced.Seconds(), "MB/s-final")
	b.ReportMetric(0, "ns/op")
}

// benchSource makes batches ahead of the client.
type benchSource struct {
	lane    batch.Lane
	left    int
	total   int
	data    []byte
	writers int
	made    chan batch.Sealed
	seq     uint64
	final   batch.Ranges
	done    chan struct{}
}

func (s *benchSource) run() {
	bd := record.NewBuilder(1 << 20)
	attrs := make([]record.Attr, s.writers)
	for i := range attrs {
		attrs[i] = record.Attr{Host: "web-01", Path: fmt.Sprintf("logs/file%d.log", i), PID: uint32(i), Time: 1e18}
	}
	n := uint64(0)
	for i := 0; ; i++ {
		if bd.Payload()+len(s.data) > 1<<20-8192 || !bd.Add(&attrs[i%s.writers], s.data) {
			n++
			s.made <- bd.Seal(batch.ID{Lane: s.lane, N: n}, 1e18)
			if int(n) == s.total {
				close(s.made)
				return
			}
			bd.Add(&attrs[i%s.writers], s.data)
		}
	}
}

func (s *benchSource) Next(ctx context.Context) (uint64, batch.Sealed, error) {
	select {
	case b, ok := <-s.made:
		if ok {
			s.seq++
			return s.seq, b, nil
		}
		<-ctx.Done()
		return 0, b, ctx.Err()
	case <-ctx.Done():
		return 0, batch.Sealed{}, ctx.Err()
	}
}

func (s *benchSource) Acked(uint64) {}
func (s *benchSource) Final(_ batch.Lane, r []batch.Range) {
	before := s.final.Count()
	for _, x := range r {
		s.final.AddRange(x)
	}
	if before < uint64(s.total) && s.final.Count() == uint64(s.total) {
		close(s.done)
	}
}
func (s *benchSource) Refused(uint64, transport.Verdict)    {}
func (s *benchSource) Skipped(batch.Lane, []transport.Skip) {}
func (s *benchSource) Skips() []transport.LaneSkips         { return nil }
func (s *benchSource) Horizon() []transport.LaneHorizon {
	return []transport.LaneHorizon{{Lane: s.lane, Below: 1}}
}
