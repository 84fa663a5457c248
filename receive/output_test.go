package receive

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ftfuse/config"
	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/internal/sink"
)

// deliver brings batches to a receiver of its own and waits until all is final.
func deliver(t *testing.T, s setup, batches ...[]rec) Stats {
	t.Helper()
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	for _, b := range batches {
		f.add(b...)
	}
	f.until(t, "final acks", f.allFinal)
	st := x.r.Stats()
	x.end()
	return st
}

func oneOutput(t *testing.T, change func(o *config.Output)) setup {
	dir := t.TempDir()
	return newSetup(t, output1(filepath.Join(dir, "out"), change))
}

func TestFormats(t *testing.T) {
	t.Setenv("TZ", "UTC")
	at := int64(1_700_000_000_123_456_789)
	in := []rec{
		{host: "web", path: "d/a.log", data: "one\ntwo\r\n\nthree", pid: 7, time: at, flags: record.Unterminated},
		{host: "web", path: "d/a.log", data: "\xff\x00\rx\n", pid: 8, time: at + 1e9},
	}
	for format, want := range map[string]string{
		"%L":               "one\ntwo\r\n\nthree\xff\x00\rx\n",
		"<%L>":             "<one>\n<two>\r\n<>\n<three>\n<\xff\x00\rx>\n",
		"%T %H %F %f %L":   "2023-11-14T22:13:20.123456789+0000 web d/a.log a.log one\n2023-11-14T22:13:20.123456789+0000 web d/a.log a.log two\r\n2023-11-14T22:13:20.123456789+0000 web d/a.log a.log \n2023-11-14T22:13:20.123456789+0000 web d/a.log a.log three\n2023-11-14T22:13:21.123456789+0000 web d/a.log a.log \xff\x00\rx\n",
		"%P,%U,%G":         "7,10,20\n7,10,20\r\n7,10,20\n7,10,20\n8,10,20\n",
		"%L %N":            "one 01000000000000000000000000000000-1-0000000000000007-0-0-1-1\ntwo 01000000000000000000000000000000-1-0000000000000007-0-0-1-2\r\n 01000000000000000000000000000000-1-0000000000000007-0-0-1-3\nthree 01000000000000000000000000000000-1-0000000000000007-0-0-1-4\n\xff\x00\rx 01000000000000000000000000000000-1-0000000000000007-0-0-1-5\n",
		"%{%H:%M}T %%%L%%": "22:13 %one%\n22:13 %two%\r\n22:13 %%\n22:13 %three%\n22:13 %\xff\x00\rx%\n",
	} {
		s := oneOutput(t, func(o *config.Output) { o.Format = format })
		deliver(t, s, in)
		wantFile(t, s.out("web", "d", "a.log"), want)
	}
}

// TestUnterminatedLineIsContinued: `printf a >>f; printf b >>f` gives "ab", in an output
// that is byte-exact and has the file for itself.
func TestUnterminatedLineIsContinued(t *testing.T) {
	s := newSetup(t)
	deliver(t, s,
		[]rec{{host: "h", path: "f", data: "a", flags: record.Unterminated}},
		[]rec{{host: "h", path: "f", data: "b", flags: record.Unterminated}},
		[]rec{{host: "h", path: "f", data: "c\n", flags: record.Break}},
		[]rec{{host: "h", path: "f", data: "d\n", flags: record.Break}})
	wantFile(t, s.out("h", "f"), "ab\nc\nd\n")
}

func TestUnifiedFileMixesNoLines(t *testing.T) {
	s := oneOutput(t, func(o *config.Output) { o.File = "all" })
	st := deliver(t, s,
		[]rec{
			{host: "h1", path: "f", data: "a1\na2", flags: record.Unterminated},
			{host: "h2", path: "f", data: "b1\n"},
			{host: "h1", path: "g", data: "long ", flags: record.PieceFirst},
		},
		[]rec{{host: "h1", path: "g", data: "line ", flags: record.PieceMiddle}},
		[]rec{
			{host: "h1", path: "g", data: "ends\n", flags: record.PieceLast},
			{host: "h1", path: "g", data: "broken ", flags: record.PieceFirst},
			{host: "h2", path: "f", data: "b2\n"},
			{host: "h1", path: "g", data: "here\n", flags: record.PieceLast},
		},
		[]rec{{host: "h1", path: "g", data: "and ", flags: record.PieceFirst}, {host: "h2", path: "f", data: "b3\n"}},
		[]rec{{host: "h1", path: "g", data: "there\n", flags: record.PieceLast}})
	wantFile(t, s.out("all"), "a1\na2\nb1\nlong line ends\nbroken \nb2\nhere\nand \nb3\nthere\n")
	if st.SplitPieces != 2 {
		t.Errorf("%d split pieces were counted, want 2", st.SplitPieces)
	}
}

func TestLongLineInAFormat(t *testing.T) {
	s := oneOutput(t, func(o *config.Output) { o.Format = "[%f] %L (%P)" })
	deliver(t, s,
		[]rec{{host: "h", path: "f", data: "short\nlong ", flags: record.PieceFirst, pid: 1}},
		[]rec{{host: "h", path: "f", data: "and longer ", flags: record.PieceMiddle, pid: 1}},
		[]rec{{host: "h", path: "f", data: "ends\r\nnext\n", flags: record.PieceLast, pid: 1}})
	wantFile(t, s.out("h", "f"), "[f] short (1)\n[f] long and longer ends (1)\r\n[f] next (1)\n")
}

func TestEveryOutputThatMatchesGetsTheData(t *testing.T) {
	dir := t.TempDir()
	s := newSetup(t,
		output1(dir+"/a", func(o *config.Output) { o.Path = "logs/**"; o.File = "%f" }),
		output1(dir+"/b", func(o *config.Output) { o.Hosts = "web-*"; o.File = "%H.log"; o.Format = "%F: %L" }),
		output1(dir+"/b", func(o *config.Output) { o.Hosts = "web-2"; o.File = "web-2.log" }))
	st := deliver(t, s, []rec{
		{host: "web-1", path: "logs/x", data: "1\n"},
		{host: "web-2", path: "other/y", data: "2\n"},
		{host: "db", path: "z", data: "nobody\n"},
	})
	wantFile(t, dir+"/a/x", "1\n")
	wantFile(t, dir+"/b/web-1.log", "logs/x: 1\n")
	wantFile(t, dir+"/b/web-2.log", "other/y: 2\n2\n")
	if st.UnmatchedRecords != 1 || st.UnmatchedBytes != 7 {
		t.Errorf("%d records of %d bytes counted as wanted by no output, want 1 of 7", st.UnmatchedRecords, st.UnmatchedBytes)
	}
}

// TestHostilePathsAreDeadLetters: nothing leaves dir, nothing special is opened, and the
// batch's other records are written.
func TestHostilePathsAreDeadLetters(t *testing.T) {
	s := newSetup(t)
	outside := t.TempDir()
	must(t, os.MkdirAll(s.out("h"), 0o755))
	must(t, os.Symlink(outside, s.out("h", "link")))
	must(t, os.Symlink(outside+"/file", s.out("h", "filelink")))
	must(t, os.Mkdir(s.out("h", "dir"), 0o755))
	must(t, os.WriteFile(s.out("h", "file"), nil, 0o644))
	must(t, syscall.Mkfifo(s.out("h", "fifo"), 0o644))
	reasons := map[string]string{
		"../../etc/cron.d/x": "bad-name", "a/../../b": "bad-name", "..": "bad-name", "": "bad-name", "a//b": "bad-name",
		"/etc/passwd": "bad-name", "./x": "bad-name", "nul\x00byte": "bad-name",
		strings.Repeat("n", 256): "name-too-long", strings.Repeat("d/", 2100) + "x": "name-too-long",
		"link/x": "symlink", "filelink": "symlink", "dir": "is-a-directory", "file/x": "not-a-directory", "fifo": "special-file",
	}
	var recs []rec
	want := map[string]sink.Dead{}
	for path, reason := range reasons {
		recs = append(recs, rec{host: "h", path: path, data: "evil\n"})
		d := want[reason]
		want[reason] = sink.Dead{Letters: d.Letters + 1, Records: d.Records + 1, Bytes: d.Bytes + 5}
	}
	recs = append(recs, rec{host: "h", path: "good", data: "good\n"}, rec{host: "../..", path: "x", data: "evil host\n"})
	d := want["bad-name"]
	want["bad-name"] = sink.Dead{Letters: d.Letters + 1, Records: d.Records + 1, Bytes: d.Bytes + 10}
	st := deliver(t, s, recs)
	wantFile(t, s.out("h", "good"), "good\n")
	if fmt.Sprint(st.Dead) != fmt.Sprint(want) {
		t.Errorf("dead letters %v, want %v", st.Dead, want)
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("something was written outside: %v", left)
	}
	letters, _ := filepath.Glob(s.State + "/receive/dead/*.dead")
	if len(letters) != len(reasons)+1 {
		t.Fatalf("%d dead letters lie there, want %d", len(letters), len(reasons)+1)
	}
	for _, path := range letters {
		raw, err := os.ReadFile(path)
		must(t, err)
		head, body, _ := strings.Cut(string(raw), "\n")
		var l struct{ Bytes int }
		if err := json.Unmarshal([]byte(head), &l); err != nil || l.Bytes != len(body) || !strings.HasPrefix(body, "evil") {
			t.Errorf("dead letter %s: %v, %q", path, err, raw)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestUndecodableBatchIsADeadLetter: with a good CRC it was sealed that way, and would
// come again for ever.
func TestUndecodableBatchIsADeadLetter(t *testing.T) {
	s := newSetup(t)
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	f.add(rec{host: "h", path: "f", data: "before\n"})
	bad := f.seal(rec{host: "h", path: "f", data: "lost in the middle\n"})
	bad.Data = append([]byte(nil), bad.Data...)
	bad.Data[len(bad.Data)-1] ^= 0x55
	bad.Data[record.HeaderSize+19] = 0xff
	bad.CRC = batch.Checksum(bad.Data)
	f.send(bad)
	f.add(rec{host: "h", path: "f", data: "after\n"})
	f.until(t, "final acks", f.allFinal)
	wantFile(t, s.out("h", "f"), "before\nafter\n")
	if d := x.r.Stats().Dead["malformed-batch"]; d.Letters != 1 || d.Records != 1 {
		t.Errorf("dead letters: %+v", x.r.Stats().Dead)
	}
	version := f.seal(rec{host: "h", path: "f", data: "from the future\n"})
	version.Data = append([]byte(nil), version.Data...)
	version.Data[4] = 99
	version.CRC = batch.Checksum(version.Data)
	f.send(version)
	f.until(t, "a refusal", func() bool { return len(f.refused) == 1 })
	x.end()
	// Both come again after a restart: nothing new lies there.
	x = start(t, s)
	f2 := newFeeder(1)
	f2.connect(t, s.Listen)
	f2.n = 3
	f2.send(bad)
	f2.until(t, "an ack of what is known", f2.allAcked)
	if d := x.r.Stats().Dead["malformed-batch"]; d.Letters != 0 {
		t.Errorf("the same dead letter was put there again")
	}
	x.end()
}

func TestDuplicatesStandOnce(t *testing.T) {
	s := newSetup(t)
	x := start(t, s)
	one, other := newFeeder(1), newFeeder(1) // one origin, two ways
	one.connect(t, s.Listen)
	other.connect(t, s.Listen)
	var want strings.Builder
	for i := range 40 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		b := one.seal(rec{host: "h", path: "f", data: line})
		one.send(b)
		one.until(t, "an ack", one.allAcked)
		other.send(b)
	}
	other.until(t, "final acks", other.allFinal)
	one.until(t, "final acks", one.allFinal)
	wantFile(t, s.out("h", "f"), want.String())
	if st := x.r.Stats(); st.Duplicates != 40 || st.Batches != 40 {
		t.Errorf("%d batches and %d duplicates were counted, want 40 and 40", st.Batches, st.Duplicates)
	}
	x.end()
}
