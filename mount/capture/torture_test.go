package capture

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"ftfuse/internal/record"
	"ftfuse/mount/spool"
)

// flagged lists data and flags of the records of path.
func (r *rig) flagged(path string) (all []string) {
	r.Helper()
	for _, x := range r.records() {
		if x.path == path {
			all = append(all, fmt.Sprintf("%s|%x", x.data, x.flags))
		}
	}
	return all
}

func (r *rig) wantRecords(path string, want ...string) {
	r.Helper()
	if got := r.flagged(path); strings.Join(got, "\x01") != strings.Join(want, "\x01") {
		r.Errorf("records of %s:\n%.600q\nwant\n%.600q", path, got, want)
	}
}

func (r *rig) end(h *spool.Handle) {
	r.Helper()
	h.End(r.meta())
}

func TestTortureBytes(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 10<<16) + "\n" // 10 MiB
	for name, in := range map[string]string{
		"crlf":       "one\r\ntwo\r\n\r\nthree\r\n",
		"nul":        "a\x00b\n\x00\n\x00\x00\x00",
		"lone cr":    "one\rtwo\rthree",
		"bad utf-8":  "\xff\xfe\xc3\n\xc3\n",
		"only ends":  "\n\n\n\n",
		"no newline": "no line end at all",
		"10 MiB":     "before\n" + long + "after\n",
		"10 MiB cut": "before\n" + strings.TrimSuffix(long, "\n"),
	} {
		t.Run(name, func(t *testing.T) {
			sizes := []int{1, 3, 4096, 1 << 16, 1 << 20, len(in)}
			if len(in) > 1000 {
				sizes = sizes[2:]
			}
			for _, size := range sizes {
				r := newRig(t, Options{})
				r.start()
				h := r.writer("t")
				for rest := in; rest != ""; {
					n := min(size, len(rest))
					r.write(h, rest[:n])
					rest = rest[n:]
				}
				r.end(h)
				r.drain()
				r.want("t", in)
				if n := r.c.Stats(); n.Pending != 0 || n.RecordBytes != uint64(len(in)) || n.Bytes != uint64(len(in)) {
					t.Errorf("writes of %d: %+v", size, n)
				}
				r.crash()
			}
		})
	}
}

// TestInterleavedWriters: the lines of four writers come out whole, whatever pieces
// they were written in, also one of 10 MiB between short ones.
func TestInterleavedWriters(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	var hs []*spool.Handle
	rest := make([]string, 4)
	left := 0
	want := map[string]bool{}
	for w := range 4 {
		hs = append(hs, r.writer("x"))
		var b strings.Builder
		for i := range 300 {
			line := fmt.Sprintf("writer %d line %d %s\n", w, i, strings.Repeat("x", i*7%200))
			if w == 2 && i == 100 {
				line = "long " + strings.Repeat("0123456789", 1<<20) + "\n"
			}
			want[line] = true
			b.WriteString(line)
		}
		rest[w] = b.String()
		left += b.Len()
	}
	for i := 0; left > 0; i++ {
		w := i % 4
		n := min(len(rest[w]), 1+i*37%61)
		if w == 2 && i > 400 {
			n = min(len(rest[w]), 1<<16)
		}
		if n > 0 {
			r.write(hs[w], rest[w][:n])
			rest[w] = rest[w][n:]
			left -= n
		}
	}
	r.drain()
	lines := bytes.SplitAfter([]byte(r.output("x")), []byte("\n"))
	if len(lines) != 1201 {
		t.Errorf("%d lines, want 1200", len(lines)-1)
	}
	for _, l := range lines[:len(lines)-1] {
		if !want[string(l)] {
			t.Fatalf("line %.80q was never written, or came twice", l)
		}
		delete(want, string(l))
	}
	if n := r.c.Stats(); n.LongLines != 1 || n.Breaks != 0 {
		t.Errorf("%d long lines, %d breaks, want 1, 0", n.LongLines, n.Breaks)
	}
}

// TestRecordIsOneWrite: whole lines of a write are one record; a line over two writes is
// its own, with what is known of the write that began it.
func TestRecordIsOneWrite(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "1\n2\n3")
	r.write(h, "3\n4\n5\n")
	r.write(h, "6\n")
	r.drain()
	r.wantRecords("a", "1\n2\n|0", "33\n|0", "4\n5\n|0", "6\n|0")
	x := r.records()
	if x[1].time != x[0].time || x[2].time == x[0].time || x[0].pid != 4711 {
		t.Errorf("times %d %d %d, pid %d", x[0].time, x[1].time, x[2].time, x[0].pid)
	}
}

func TestReleaseEndsALineAndFlushDoesNot(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "half")
	r.must(h.Flush(r.meta()))
	r.drain()
	r.wantRecords("a")
	if n := r.c.Stats(); n.Pending != 1 || n.PendingBytes != 4 {
		t.Errorf("%+v", n)
	}
	r.end(h)
	r.drain()
	r.wantRecords("a", "half|1")
}

// TestPrintfAppendedTwice: `printf a >>f; printf b >>f` is "ab".
func TestPrintfAppendedTwice(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	for _, s := range []string{"a", "b", "c\n"} {
		h := r.writer("f")
		r.write(h, s)
		r.end(h)
	}
	r.drain()
	r.want("f", "abc\n")
}

// TestOtherWriterDoesNotGoOnInALine: who was open while another's line ended without
// a line end begins a new one, also after a kill in between.
func TestOtherWriterDoesNotGoOnInALine(t *testing.T) {
	for _, kill := range []bool{false, true} {
		r := newRig(t, Options{})
		r.start()
		a, b := r.writer("f"), r.writer("f")
		r.write(b, "b0\n")
		r.write(a, "half")
		r.end(a)
		r.drain()
		r.write(b, "b1\n")
		r.write(b, "b2\n")
		if kill {
			r.restart()
		} else {
			r.drain()
		}
		r.wantRecords("f", "b0\n|0", "half|1", "b1\n|2", "b2\n|0")
		r.want("f", "b0\nhalf\nb1\nb2\n")
		r.crash()
	}
}

// TestWriterThatHadNotWrittenYet was open, too.
func TestWriterThatHadNotWrittenYet(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	a, b := r.writer("f"), r.writer("f")
	r.write(a, "half")
	r.end(a)
	c := r.writer("f")
	r.write(c, "goes on\n")
	r.drain()
	d := r.writer("f")
	r.write(d, "half")
	r.end(d)
	r.write(b, "b\n")
	r.drain()
	r.wantRecords("f", "half|1", "goes on\n|0", "half|1", "b\n|2")
}

func TestLongLineTravelsInPieces(t *testing.T) {
	r := newRig(t, Options{MaxLine: 4, BatchBytes: 1 << 16})
	r.start()
	h := r.writer("a")
	r.write(h, "1234\n12345\n123456789")
	r.write(h, "0\nab\n")
	r.write(h, "12345")
	r.end(h)
	r.drain()
	first, middle, last, cut := record.PieceFirst, record.PieceMiddle, record.PieceLast, record.Unterminated
	p := func(s string, f uint16) string { return fmt.Sprintf("%s|%x", s, f) }
	r.wantRecords("a", "1234\n|0", p("1234", first), p("5\n", last), p("1234", first), p("5678", middle), p("90\n", last),
		"ab\n|0", p("1234", first), p("5", last|cut))
	if n := r.c.Stats(); n.LongLines != 3 {
		t.Errorf("%d long lines, want 3", n.LongLines)
	}
}

// TestHoldBoundSendsPiecesAsTheyCome: a line longer than MaxHold does not stay in
// memory, and others of its path then begin lines of their own.
func TestHoldBoundSendsPiecesAsTheyCome(t *testing.T) {
	r := newRig(t, Options{MaxLine: 100, MaxHold: 1000})
	r.start()
	a, b := r.writer("f"), r.writer("f")
	for range 30 {
		r.write(a, strings.Repeat("x", 99))
		r.drain()
		if n := r.c.Stats(); n.PendingBytes > 1000 {
			t.Fatalf("%d bytes held", n.PendingBytes)
		}
	}
	r.write(b, "short\n")
	r.write(a, "end\n")
	r.drain()
	out := r.output("f")
	if !strings.Contains(out, "x\nshort\nx") || !strings.HasSuffix(out, "xend\n") {
		t.Errorf("%q", out)
	}
}

// TestAnEndWithoutBytesCutTheLineOfAnotherWriter: of a long line all had gone out when its writer
// closed, and another writer's had begun behind it since. The end says nothing more there.
func TestAnEndWithoutBytesCutTheLineOfAnotherWriter(t *testing.T) {
	r := newRig(t, Options{MaxLine: 100, MaxHold: 1000})
	r.start()
	a, b := r.writer("f"), r.writer("f")
	x, y := strings.Repeat("x", 1200), strings.Repeat("y", 1200)
	r.write(a, x)
	r.drain()
	r.write(b, y)
	r.drain()
	r.end(a)
	r.drain()
	r.write(b, "the end\n")
	r.drain()
	r.want("f", x+"\n"+y+"the end\n")
	if n := r.c.Stats(); n.Breaks != 1 {
		t.Errorf("%d breaks, want 1", n.Breaks)
	}
}

// TestALineEndIsNotCutInTwo: where the carriage return of a line that was too long to be held was the
// last byte there was, it went out with the piece before. An output that formats lines then has it
// inside the line.
func TestALineEndIsNotCutInTwo(t *testing.T) {
	for name, o := range map[string]Options{
		"longer than one may be held":  {MaxLine: 10, MaxHold: 20},
		"more than all may be held":    {MaxLine: 10, MaxPending: 20},
		"pieces of one byte":           {MaxLine: 1, MaxHold: 20},
		"each byte written by itself":  {MaxLine: 10, MaxHold: 20},
		"a carriage return in between": {MaxLine: 10, MaxHold: 20},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, o)
			r.start()
			h := r.writer("f")
			line := strings.Repeat("x", 29)
			if name == "a carriage return in between" {
				line = strings.Repeat("x", 29) + "\r" + strings.Repeat("y", 9)
			}
			parts := []string{line + "\r", "\nnext\r\n"}
			if name == "each byte written by itself" {
				parts = strings.Split(parts[0]+parts[1], "")
			}
			for _, p := range parts {
				r.write(h, p)
				r.drain()
			}
			r.want("f", strings.Join(parts, ""))
			for _, x := range r.records() {
				if x.data[0] == '\n' {
					t.Errorf("the line end is cut in two: %q", x.data)
				}
			}
		})
	}
}

func TestPendingIsBoundedInAll(t *testing.T) {
	r := newRig(t, Options{MaxPending: 10_000})
	r.start()
	want := map[string]string{}
	for i := range 40 {
		h := r.writer(fmt.Sprint("f", i))
		for range 3 {
			s := strings.Repeat(string(rune('a'+i%26)), 300)
			r.write(h, s)
			want[fmt.Sprint("f", i)] += s
			r.drain()
			if n := r.c.Stats(); n.PendingBytes > 10_000 {
				t.Fatalf("%d bytes held", n.PendingBytes)
			}
		}
	}
	r.restart()
	for path, s := range want {
		r.want(path, s)
	}
}

// TestRewriteOfUnfinishedLinesIsBounded: a line that grows by 100 bytes with each of
// 1,000 commits is stored about once, not once for each commit.
func TestRewriteOfUnfinishedLinesIsBounded(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	for range 1000 {
		r.write(h, strings.Repeat("x", 100))
		r.drain()
	}
	r.q.mu.Lock()
	n := r.q.rewrite
	r.q.mu.Unlock()
	if most := int64(1000 * (pendChunk + 200)); n > most {
		t.Errorf("%d bytes stored for a line of 100,000, want at most %d", n, most)
	}
	r.restart()
	r.want("a", strings.Repeat("x", 100_000))
}

func TestBinaryModeEndsARecordAtFlush(t *testing.T) {
	r := newRig(t, Options{Rules: []Rule{{Path: "*.bin", Transfer: true, Mode: ModeBinary}}})
	r.start()
	h := r.writer("a.bin")
	r.write(h, "one\ntwo")
	r.write(h, "three")
	r.must(h.Flush(r.meta()))
	r.write(h, "four")
	r.drain()
	f, m, l := record.Binary|record.PieceFirst, record.Binary|record.PieceMiddle, record.Binary|record.PieceLast
	p := func(s string, f uint16) string { return fmt.Sprintf("%s|%x", s, f) }
	want := []string{p("one\ntwo", f), p("three", m), p("", l), p("four", f)}
	r.wantRecords("a.bin", want...)
	r.restart()
	r.wantRecords("a.bin", append(want, p("", l))...)
}

func TestRules(t *testing.T) {
	r := newRig(t, Options{Rules: []Rule{
		{Path: "logs/*.1"},
		{Path: "logs/**", Transfer: true},
		{Path: "**/tmp/**"},
	}})
	r.start()
	for _, d := range []string{"logs", "x", "x/tmp"} {
		r.must(r.s.Mkdir(d, 0o755, 0, 0))
	}
	for _, p := range []string{"logs/a", "logs/a.1", "x/tmp/b", "other"} {
		r.write(r.writer(p), "data\n")
	}
	r.write(r.writer("logs/a.1"), "half")
	r.drain()
	r.want("logs/a", "data\n")
	r.want("other", "data\n")
	r.want("logs/a.1", "")
	r.want("x/tmp/b", "")
	n := r.c.Stats()
	want := []RuleStats{{Path: "logs/*.1", SkippedWrites: 2, SkippedBytes: 9}, {Path: "logs/**"}, {Path: "**/tmp/**", SkippedWrites: 1, SkippedBytes: 5}}
	if !slices.Equal(n.Rules, want) {
		t.Errorf("%+v", n.Rules)
	}
	if _, err := New(Options{Store: r.s, Queue: r.q, Rules: []Rule{{Path: "a["}}}); err == nil {
		t.Error("a glob that cannot be is taken")
	}
}

func TestHoleIsSkippedAndCounted(t *testing.T) {
	r := newRig(t, Options{})
	r.start()
	h := r.writer("a")
	r.write(h, "one\n")
	if _, err := h.Write([]byte("two\n"), 100_000, false, r.meta()); err != nil {
		t.Fatal(err)
	}
	r.drain()
	r.want("a", "one\ntwo\n")
	if n := r.c.Stats(); n.Holes != 1 || n.HoleBytes != 100_000-4 {
		t.Errorf("%+v", n)
	}
}

// naive is what a capture of one writer has to give: records by lines.
func naive(data []byte, maxLine int) (out []byte, pieces int) {
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		n, line := i+1, i
		if i < 0 {
			n, line = len(data), len(data)
		}
		if line > maxLine {
			pieces++
		}
		out = append(out, data[:n]...)
		data = data[n:]
	}
	return out, pieces
}

// FuzzCut cuts any bytes, written in any sizes, and compares with a naive splitter.
func FuzzCut(f *testing.F) {
	f.Add([]byte("one\ntwo\nthree"), uint16(3), uint8(5), uint16(50))
	f.Add([]byte("\n\n\r\n\x00"), uint16(1), uint8(1), uint16(0))
	f.Add(bytes.Repeat([]byte("0123456789\n"), 900), uint16(4096), uint8(9), uint16(2000))
	f.Fuzz(func(t *testing.T, data []byte, size uint16, maxLine uint8, batch uint16) {
		step, limit := int(size)+1, int(maxLine)+1
		s := &lineStore{writers: 1, size: int64(step), n: uint64((len(data) + step - 1) / step), text: data, freed: make(chan uint64, 1)}
		q := newMemQueue(t)
		defer q.crash()
		c, err := New(Options{Store: s, Queue: q, BatchBytes: int(batch) + 100, MaxLine: limit, RunBytes: 1 + int(batch)})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.recover1(); err != nil {
			t.Fatal(err)
		}
		c.ctx = t.Context()
		c.intakeTest(data)
		for _, w := range c.files[1].writers {
			if err := c.end(w, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.submit(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if err := q.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		r := &rig{TB: t, q: q}
		var got []byte
		long := 0
		for _, x := range r.records() {
			got = append(got, x.data...)
			if len(x.data) > limit+1 && strings.Count(strings.TrimSuffix(x.data, "\n"), "\n") == 0 {
				t.Fatalf("a record of one line of %d bytes, max_line is %d", len(x.data), limit)
			}
			ends := strings.HasSuffix(x.data, "\n")
			if inside := x.flags&(record.PieceFirst|record.PieceMiddle|record.Unterminated) != 0; inside == ends {
				t.Fatalf("record %q with flags %#x", x.data, x.flags)
			}
			if x.flags&record.PieceFirst != 0 {
				long++
			}
		}
		want, pieces := naive(data, limit)
		if !bytes.Equal(got, want) || long != pieces {
			t.Fatalf("%d bytes, %d long lines, want %d, %d", len(got), long, len(want), pieces)
		}
	})
}

// intakeTest cuts all entries of a lineStore whose last one is short.
func (c *Capture) intakeTest(data []byte) {
	f := c.fileOf(1)
	for _, e := range c.o.Store.Entries(make([]spool.Entry, 0, len(data)+1), 1) {
		e.Len = uint32(min(int64(e.Len), int64(len(data))-e.Off))
		c.enqueue(&e)
		c.taken = e.Seq
	}
	if _, err := c.cutFile(f, 1<<60, allEntries); err != nil {
		panic(err)
	}
}
