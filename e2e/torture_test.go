package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"testing"

	"ftfuse/bench/rig"
)

// torture is bytes that line handling trips over, by name.
func torture() map[string][]byte {
	random := make([]byte, 1<<20)
	_, _ = rand.Read(random) // never fails (crypto/rand)
	return map[string][]byte{
		"crlf":         []byte("one\r\ntwo\r\n\r\nthree\r\n"),
		"lone-cr":      []byte("progress 1\rprogress 2\rdone\n\rx\r"),
		"nul":          []byte("a\x00b\n\x00\x00\n\x00"),
		"no-utf8":      []byte("\xff\xfe\xfd\n\xc3\x28\n\xed\xa0\x80\n"),
		"empty-lines":  []byte("\n\n\n\n"),
		"only-lf":      []byte("\n"),
		"one-byte":     []byte("x"),
		"no-line-end":  []byte("a line\nand one without its end"),
		"long-line":    append(bytes.Repeat([]byte("0123456789abcdef"), 10<<16), '\n'), // 10 MiB
		"long-no-end":  bytes.Repeat([]byte("long "), 600_000),
		"random":       random,
		"percent":      []byte("%H %F %L %% %\n$1 ${x}\\n\n"),
		"escapes":      []byte("\x1b[31mred\x1b[0m\n\x07\x08\n"),
		"exact-block":  append(bytes.Repeat([]byte("b"), 65535), '\n'),
		"block-plus-1": append(bytes.Repeat([]byte("b"), 65536), '\n'),
		"exact-mib":    append(bytes.Repeat([]byte("m"), 1<<20-1), '\n'),
		"many-short":   bytes.Repeat([]byte("a\n"), 300_000),
		"long-between": bytes.Join([][]byte{[]byte("short\n"), bytes.Repeat([]byte("L"), 3<<20), []byte("\nshort again\n")}, nil),
	}
}

// Whatever bytes go in come out, with whatever sizes the writes had.
func TestTortureBytesComeOutAsTheyWentIn(t *testing.T) {
	eachCapture(t, tortureBytes)
}

func tortureBytes(t *testing.T, c capture, p *rig.Pair) {
	c.start(t, p)
	for name, want := range torture() {
		for _, size := range []int{7, 4096, 65536, 1 << 20} {
			if len(want)/size > 100_000 {
				continue // a write(2) a byte of 10 MiB shows nothing more
			}
			file := fmt.Sprintf("%s-%d.log", name, size)
			f, err := os.OpenFile(p.In(file), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			for rest := want; len(rest) > 0; {
				n := min(size, len(rest))
				if _, err := f.Write(rest[:n]); err != nil {
					t.Fatalf("%s: %v", file, err)
				}
				rest = rest[n:]
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, want := range torture() {
		if name == "random" {
			continue // drawn anew; below
		}
		for _, size := range []int{7, 4096, 65536, 1 << 20} {
			if len(want)/size <= 100_000 {
				arrives(t, p.Out(fmt.Sprintf("%s-%d.log", name, size)), want)
			}
		}
	}
	stop(t, p)
	if a, b := read(t, p.Out("random-4096.log")), read(t, p.Out("random-1048576.log")); len(a) != 1<<20 || !bytes.Equal(a, b) {
		t.Errorf("random bytes written in 4 KiB and in 1 MiB writes came out as %d and %d bytes, want the same MiB", len(a), len(b))
	}
}

// Two writers share a file and write pieces of lines in turn: each line comes out whole.
// Where the kernel writes the lines are mixed as on ext4, and come out so.
func TestInterleavedWritersKeepTheirLinesWhole(t *testing.T) {
	eachCapture(t, interleaved)
}

func interleaved(t *testing.T, c capture, p *rig.Pair) {
	c.start(t, p)
	open := func() *os.File {
		f, err := os.OpenFile(p.In("shared.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	a, b := open(), open()
	stream := ""
	put := func(f *os.File, s string) {
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
		stream += s
	}
	var lines []string
	for i := range 200 {
		put(a, fmt.Sprintf("A%d begins", i))
		put(b, fmt.Sprintf("B%d beg", i))
		put(a, fmt.Sprintf(" and ends %d\nA%d is ", i, i))
		put(b, fmt.Sprintf("ins and ends %d\n", i))
		put(a, "short\n")
		lines = append(lines, fmt.Sprintf("A%d begins and ends %d\n", i, i), fmt.Sprintf("A%d is short\n", i), fmt.Sprintf("B%d begins and ends %d\n", i, i))
	}
	a.Close()
	b.Close()
	if c.passthrough {
		arrives(t, p.Out("shared.log"), []byte(stream))
		return
	}
	eventually(t, patience, func() error {
		if n := bytes.Count(read(t, p.Out("shared.log")), []byte("\n")); n < len(lines) {
			return fmt.Errorf("%d of %d lines arrived", n, len(lines))
		}
		return nil
	})
	count := map[string]int{}
	for line := range strings.Lines(string(read(t, p.Out("shared.log")))) {
		count[line]++
	}
	for _, l := range lines {
		if count[l] != 1 {
			t.Errorf("line %q came out %d times, want once", l, count[l])
		}
		delete(count, l)
	}
	if len(count) > 0 {
		t.Errorf("lines that nobody wrote: %v", count)
	}
}

// Binary mode carries bytes as they are, too.
func TestBinaryModeCarriesBytes(t *testing.T) {
	eachCapture(t, binaryBytes)
}

func binaryBytes(t *testing.T, c capture, p *rig.Pair) {
	p.Rules = fmt.Sprintf("[[mount.rule]]\npath = \"**\"\nmode = \"binary\"\nattribution = %q\n", c.attribution)
	c.start(t, p)
	want := make([]byte, 3<<20)
	_, _ = rand.Read(want) // never fails (crypto/rand)
	if err := os.WriteFile(p.In("blob.bin"), want, 0o644); err != nil {
		t.Fatal(err)
	}
	arrives(t, p.Out("blob.bin"), want)
}
