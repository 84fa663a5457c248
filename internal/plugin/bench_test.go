package plugin

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/internal/record"
	"ftfuse/queue"
)

// BenchmarkLines is 128-byte lines from a queue through a plugin that counts them, beside
// the same bytes from a file to the same program. Lines per second are reported.
func BenchmarkLines(b *testing.B) {
	line := strings.Repeat("x", 127) + "\n"
	const perBatch, batches = 7000, 150
	one := strings.Repeat(line, perBatch)
	b.Run("reference", func(b *testing.B) {
		all := []byte(strings.Repeat(one, batches))
		for b.Loop() {
			cmd := exec.Command("/usr/bin/wc", "-l")
			cmd.Stdin = bytes.NewReader(all) // by a pipe, as a program would
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N)*perBatch*batches/b.Elapsed().Seconds(), "lines/s")
	})
	for _, ack := range []Ack{AckPipe, AckLine} {
		for _, format := range []string{"%L", "%H %F %L"} {
			b.Run(fmt.Sprintf("%s/%s", ack, format), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					q, p := benchQueue(b, ack, one, batches)
					p.Format = format
					s, err := Open(Options{Queue: q, Plugins: []Plugin{p}, Dir: filepath.Join(b.TempDir(), "plugin")})
					must(b, err)
					ctx, cancel := context.WithCancel(b.Context())
					done := make(chan error, 1)
					b.StartTimer()
					go func() { done <- s.Run(ctx) }()
					must(b, s.Drain(ctx))
					b.StopTimer()
					cancel()
					must(b, <-done)
					must(b, q.Close())
					b.StartTimer()
				}
				b.ReportMetric(float64(b.N)*perBatch*batches/b.Elapsed().Seconds(), "lines/s")
			})
		}
	}
}

func benchQueue(b *testing.B, ack Ack, one string, batches int) (*queue.Queue, Plugin) {
	dir := b.TempDir()
	p := Plugin{Cursor: CursorOf("bench"), Rule: "**", Command: "/usr/bin/wc", Args: Arguments([]string{"-l"}), Ack: ack, Hosts: "*", Path: "**", Format: "%L", Time: "%s"}
	if ack == AckLine {
		script := "import os,sys\nd=sys.stdin.buffer; a=os.fdopen(3,'w')\nwhile h:=d.readline():\n _,n,l,s=h.split()\n d.read(int(s)); print('ok',int(n),file=a,flush=True)\n"
		file := filepath.Join(dir, "ack.py")
		must(b, os.WriteFile(file, []byte(script), 0o600))
		p.Command, p.Args = "/usr/bin/python3", Arguments([]string{file})
	}
	q, err := queue.Open(filepath.Join(dir, "queue"), queue.Options{Cursors: []string{p.Cursor}, MemoryBytes: 1 << 30})
	must(b, err)
	build := record.NewBuilder(1 << 20)
	for i := range batches {
		s := sealed(build, uint64(i+1), rec{"logs/a", one, 0})
		_, err := q.Submit(b.Context(), &queue.Txn{Entries: []queue.Entry{{Batch: s}}})
		must(b, err)
	}
	must(b, q.Flush(b.Context()))
	return q, p
}
