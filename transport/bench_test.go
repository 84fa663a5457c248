package transport

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"ftfuse/internal/batch"
)

// endlessSource gives the same bytes under new ids, n times.
type endlessSource struct {
	data []byte
	crc  uint32
	n    uint64
	left atomic.Int64
	done chan struct{}
	want atomic.Int64
}

func (s *endlessSource) Next(ctx context.Context) (uint64, batch.Sealed, error) {
	if s.left.Add(-1) < 0 {
		<-ctx.Done()
		return 0, batch.Sealed{}, ctx.Err()
	}
	s.n++
	b := testBatch(testLane(1), s.n, nil)
	b.Data, b.CRC, b.Payload = s.data, s.crc, uint64(len(s.data))
	return s.n, b, nil
}

func (s *endlessSource) Acked(uint64) {
	if s.want.Add(-1) == 0 {
		close(s.done)
	}
}
func (s *endlessSource) Final(batch.Lane, []batch.Range) {}
func (s *endlessSource) Refused(uint64, Verdict)         {}
func (s *endlessSource) Horizon() []LaneHorizon          { return nil }
func (s *endlessSource) Skipped(batch.Lane, []Skip)      {}
func (s *endlessSource) Skips() []LaneSkips              { return nil }

// taker takes everything at once and holds the newest 64, as a queue that serves its
// reader from memory does.
type taker struct {
	held [64]batch.Sealed
	n    int
}

func (h *taker) Batch(_ context.Context, _ Peer, b batch.Sealed, reply func(Verdict)) {
	h.held[h.n%len(h.held)] = b
	h.n++
	reply(Verdict{Code: Taken})
}
func (*taker) Horizon(Peer, batch.Lane, uint64, bool) {}
func (*taker) Skip(Peer, batch.Lane, []Skip)          {}

// BenchmarkLoopback sends batches over loopback until the last one is acked, each
// checked against its CRC; BenchmarkRawTCP is the same bytes by write and read alone.
func BenchmarkLoopback(b *testing.B) {
	for _, size := range []int{200, 4 << 10, 64 << 10, 1 << 20, 4 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			_, ln := serve(b, ServerOptions{Heartbeat: DefaultHeartbeat, DeadAfter: DefaultDeadAfter}, new(taker))
			src := &endlessSource{data: make([]byte, size), done: make(chan struct{})}
			src.crc = batch.Checksum(src.data)
			src.left.Store(int64(b.N))
			src.want.Store(int64(b.N))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			connect(b, ClientOptions{Address: ln.Addr().String(), Heartbeat: DefaultHeartbeat, DeadAfter: DefaultDeadAfter}, src)
			<-src.done
			b.StopTimer()
		})
	}
}

func BenchmarkRawTCP(b *testing.B) {
	for _, size := range []int{64 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer ln.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				nc, err := ln.Accept()
				if err != nil {
					return
				}
				defer nc.Close()
				buf := make([]byte, size)
				for {
					if _, err := io.ReadFull(nc, buf); err != nil {
						return
					}
				}
			}()
			nc, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			data := make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := nc.Write(data); err != nil {
					b.Fatal(err)
				}
			}
			nc.Close()
			<-done
		})
	}
}
