package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ftfuse/bench/rig"
)

const benchLines = 1_000_000

// benchText is so many lines of 128 bytes, of which one in ten is an ERROR and names a user.
func benchText() []byte {
	var b bytes.Buffer
	for i := range benchLines {
		level := "INFO"
		if i%10 == 0 {
			level = "ERROR"
		}
		line := fmt.Sprintf("2026-11-23T06:50:00.%06d web-01 app[4711]: %s request id=%07d user=u%d status=200 bytes=1234 ", i, level, i, i%1000)
		b.WriteString(line)
		b.Write(bytes.Repeat([]byte{'x'}, 127-len(line)))
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// BenchmarkFilters is a million lines of 128 bytes through a mount to the file of a receiver,
// from the first write until the last byte that is kept is there; "none" is the reference.
//
//	go test -run xxx -bench Filters -benchtime 3x ./e2e
func BenchmarkFilters(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	text := benchText()
	for _, c := range []struct {
		name, rule string
		kept       int // lines
	}{
		{"none", "", benchLines},
		{"literal-and-regexp-keep-all", `deny = [ { literal = "healthcheck" } ]
allow = [ { match = "request id=\\d+ user=u\\d" } ]
default = "deny"`, benchLines},
		{"literal-and-regexp-keep-a-tenth", `deny = [ { literal = "healthcheck" } ]
allow = [ { match = "ERROR .*user=u\\d" } ]
default = "deny"`, benchLines / 10},
		{"replace-all", `allow = [ { match = "user=u(\\d+)", replace = "user=x$1" } ]`, benchLines},
		{"either-case", `deny = [ { match = "(?i)healthcheck" } ]`, benchLines},
		{"regexp-without-a-literal", `deny = [ { match = "[0-9][a-z]{4}$" } ]`, benchLines},
	} {
		b.Run(c.name, func(b *testing.B) {
			var took time.Duration
			for n := range b.N {
				took += filterRun(b, fmt.Sprint(c.name, n), c.rule, text, int64(c.kept)*128)
			}
			b.ReportMetric(benchLines*float64(b.N)/took.Seconds(), "lines/s")
		})
	}
}

// filterRun returns how long it took until want bytes were in the output.
func filterRun(b *testing.B, name, rule string, text []byte, want int64) time.Duration {
	p, err := rig.NewPair(bin, filepath.Join(b.TempDir(), name))
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	p.Rules = "[[mount.rule]]\npath = \"**\"\n" + rule
	if err := p.StartBoth(b.Context()); err != nil {
		b.Fatal(err)
	}
	f, err := os.OpenFile(p.In("f.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	begin := time.Now()
	for rest := text; len(rest) > 0; {
		n, err := f.Write(rest[:min(len(rest), 64<<10)])
		if err != nil {
			b.Fatal(err)
		}
		rest = rest[n:]
	}
	for {
		if st, err := os.Stat(p.Out("f.log")); err == nil && st.Size() >= want {
			if st.Size() > want {
				b.Fatalf("%d bytes came, want %d", st.Size(), want)
			}
			return time.Since(begin)
		}
		if time.Since(begin) > 2*time.Minute {
			b.Fatal("the lines do not arrive")
		}
		time.Sleep(time.Millisecond)
	}
}
