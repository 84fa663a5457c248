package plugin

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/record"
)

// to has the standard output of p go to name below dir.
func to(dir, name string) func(p *Plugin) {
	return func(p *Plugin) { p.Dir, p.File = dir, name }
}

func TestAPluginGetsLinesAndItsOutputIsTheFile(t *testing.T) {
	out := t.TempDir()
	for _, ack := range []Ack{AckPipe, AckLine} {
		t.Run(string(ack), func(t *testing.T) {
			script := "exec cat"
			if ack == AckLine {
				script = "exec ../../testdata/plugins/batch.sh"
			}
			wd, err := os.Getwd()
			must(t, err)
			p := shell("cd "+wd+" && "+script, to(out, string(ack)+"/a"))
			p.Ack = ack
			r := newRig(t, p)
			r.lines(0, 500)
			r.drain()
			wantOnce(t, read(t, filepath.Join(out, string(ack), "a")), 500)
			if n := r.backlog(p.Cursor); n != 0 {
				t.Errorf("%d batches are not acked", n)
			}
			if s := r.set.Stats()[0]; s.TakenRecords != 500 || s.GivenRecords != 500 {
				t.Errorf("taken %d, given %d records, want 500", s.TakenRecords, s.GivenRecords)
			}
		})
	}
}

func TestTheEnvironmentAndTheDescriptorsOfAPluginAreItsOwn(t *testing.T) {
	t.Setenv("SECRET", "of the role")
	out := t.TempDir()
	for ack, fds := range map[Ack]string{AckPipe: "0 1 2", AckLine: "0 1 2 3"} {
		p := shell(`env | sort; for f in /proc/$$/fd/*; do [ -e $f ] && printf "%s " ${f##*/}; done; echo; read x`, to(out, string(ack)))
		p.Ack = ack
		r := newRig(t, p)
		file := filepath.Join(out, string(ack))
		await(t, "the plugin prints", func() bool { return len(read(t, file)) >= 6 })
		must(t, r.stop())
		got := read(t, file)
		want := []string{"FTFUSE_HOST=collector", "FTFUSE_ROLE=receive", "FTFUSE_RULE=logs/**", "PATH=" + os.Getenv("PATH"), "PWD=/"}
		if !slices.Equal(got[:5], want) {
			t.Errorf("environment %q, want %q", got[:5], want)
		}
		if strings.TrimSpace(got[5]) != fds {
			t.Errorf("%s: descriptors %q, want %q", ack, got[5], fds)
		}
	}
}

func TestWhatAPluginHasNotReadIsGivenToTheNext(t *testing.T) {
	out := t.TempDir()
	// A shell reads byte by byte: each process takes one line, and dies.
	p := shell(`read -r l && echo "$l"; kill -9 $$`, to(out, "a"))
	r := newRig(t, p)
	r.lines(0, 60)
	await(t, "all lines", func() bool { return len(read(t, filepath.Join(out, "a"))) >= 60 })
	must(t, r.stop())
	wantOnce(t, read(t, filepath.Join(out, "a")), 60)
}

func TestAPluginKilledAtAnyMomentGetsAgainWhatItDidNotAcknowledge(t *testing.T) {
	for _, name := range []string{"batch.sh", "store.py"} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir()
			script, err := filepath.Abs("../../testdata/plugins/" + name)
			must(t, err)
			db := filepath.Join(out, "lines.db")
			p := Plugin{
				Cursor: CursorOf("test"), Rule: "logs/**", Command: script, Args: Arguments([]string{db}), Ack: AckLine,
				Hosts: "*", Path: "**", Format: "%L", Time: "%s", Dir: out, File: "a",
			}
			r := newRig(t, p)
			kills := 0
			for i := range 40 {
				r.lines(i*25, 25)
				if pid := r.set.Stats()[0].PID; pid != 0 && syscall.Kill(pid, syscall.SIGKILL) == nil {
					kills++
				}
			}
			await(t, "all is taken", func() bool { return r.backlog(p.Cursor) == 0 })
			r.drain()
			if name == "store.py" {
				wantOnce(t, sqliteLines(t, db), 1000)
				return
			}
			doubles := wantEach(t, whole(read(t, filepath.Join(out, "a"))), 1000)
			t.Logf("%d kills, %d lines twice", kills, doubles)
		})
	}
}

// whole leaves lines out that a kill cut off while they were written.
func whole(lines []string) []string {
	var all []string
	for _, l := range lines {
		if n := strings.LastIndex(l, "line "); n >= 0 {
			all = append(all, l[n:])
		}
	}
	return all
}

func TestAStuckPluginHoldsNothingElseBack(t *testing.T) {
	out := t.TempDir()
	stuck := shell("exec sleep 1000", nil)
	good := shell("exec cat", to(out, "a"))
	good.Cursor = CursorOf("good")
	r := newRig(t, stuck, good)
	for i := range 400 { // more than the pipe and the window take
		r.put(rec{path: "logs/a", data: fmt.Sprintf("line %d\n", i)}, rec{path: "big", data: strings.Repeat("x", 40000) + "\n"})
	}
	await(t, "the other plugin has all", func() bool { return r.backlog(good.Cursor) == 0 })
	if n := r.backlog(stuck.Cursor); n != 400 {
		t.Errorf("the stuck plugin has taken %d batches", 400-n)
	}
	if len(read(t, filepath.Join(out, "a"))) != 800 {
		t.Error("the other one has not printed all")
	}
}

func TestAStuckPluginIsKilledAfterItsTimeoutAndStartedAgain(t *testing.T) {
	out := t.TempDir()
	for ack, script := range map[Ack]string{
		AckPipe: `[ -e %[1]s ] && exec cat; touch %[1]s; exec sleep 1000`,
		AckLine: `[ -e %[1]s ] || { touch %[1]s; cat >/dev/null; }; while read -r b n l s; do read -r x; echo "$x"; echo "ok $n" >&3; done`,
	} {
		t.Run(string(ack), func(t *testing.T) {
			p := shell(fmt.Sprintf(script, filepath.Join(out, "mark-"+string(ack))), to(out, string(ack)))
			p.Ack, p.Timeout = ack, 200*time.Millisecond
			r := newRig(t, p)
			r.lines(0, 20)
			await(t, "all is taken", func() bool { return r.backlog(p.Cursor) == 0 })
			if n := r.set.Stats()[0].Timeouts; n != 1 {
				t.Errorf("killed %d times, want once", n)
			}
			r.drain()
			wantOnce(t, read(t, filepath.Join(out, string(ack))), 20)
		})
	}
}

func TestAPluginWithNothingToTakeIsNotStuck(t *testing.T) {
	out := t.TempDir()
	p := shell("exec cat", to(out, "a"))
	p.Timeout = time.Second // a busy machine may need a part of it to start the shell
	r := newRig(t, p)
	r.lines(0, 1)
	await(t, "it is taken", func() bool { return r.backlog(p.Cursor) == 0 })
	began := time.Now()
	await(t, "time passes", func() bool { return time.Since(began) > p.Timeout+200*time.Millisecond })
	r.lines(1, 50) // the time counts from when a batch is offered
	await(t, "they are taken", func() bool { return r.backlog(p.Cursor) == 0 })
	if s := r.set.Stats()[0]; s.Timeouts != 0 || s.Starts != 1 {
		t.Errorf("%d timeouts, %d starts", s.Timeouts, s.Starts)
	}
}

func TestLinesInPiecesComeOutWhole(t *testing.T) {
	out := t.TempDir()
	p := shell("exec cat", to(out, "a"))
	r := newRig(t, p)
	r.put(rec{"long", "whole\nbegin-", record.PieceFirst}, rec{"b", "other\n", 0})
	r.put(rec{"long", "middle-", record.PieceMiddle})
	r.put(rec{"b", "between\n", 0})
	await(t, "what is whole is given", func() bool { return len(read(t, filepath.Join(out, "a"))) == 3 })
	await(t, "what has no piece is acked", func() bool { return r.backlog(p.Cursor) == 2 })
	r.put(rec{"long", "end\r\nnext\n", record.PieceLast}, rec{"c", "no end", record.Unterminated})
	await(t, "all is acked", func() bool { return r.backlog(p.Cursor) == 0 })
	r.drain()
	want := []string{"whole", "other", "between", "begin-middle-end\r", "next", "no end"}
	if got := read(t, filepath.Join(out, "a")); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestABatchThatHoldsAPieceComesAgainAfterARestart(t *testing.T) {
	out := t.TempDir()
	p := shell("exec cat", to(out, "a"))
	r := newRig(t, p)
	r.put(rec{"long", "begin-", record.PieceFirst})
	r.put(rec{"b", "other\n", 0})
	await(t, "the other line is taken", func() bool { return r.backlog(p.Cursor) == 1 })
	r.drain() // a line without its end keeps nobody waiting
	must(t, r.stop())
	r.start(p)
	r.put(rec{"long", "end\n", record.PieceLast})
	await(t, "all is acked", func() bool { return r.backlog(p.Cursor) == 0 })
	r.drain()
	if got := read(t, filepath.Join(out, "a")); !slices.Equal(got, []string{"other", "begin-end"}) {
		t.Errorf("got %q", got)
	}
}

// TestABinaryRecordWasHeldForAMinuteAndGotALineFeed: its end is a piece without bytes where what
// was written had left when its file was flushed or closed. That was passed over, so that the
// record was held until the next one or for a minute, and went out as a line.
func TestABinaryRecordWasHeldForAMinuteAndGotALineFeed(t *testing.T) {
	const first, middle, last = record.Binary | record.PieceFirst, record.Binary | record.PieceMiddle, record.Binary | record.PieceLast
	for _, c := range []struct{ format, want string }{
		{"%L", "\x00one\r\n\x01two\x02three\x03\nfour\x04long end\none\ntwo\nthree\nfour\n"},
		{"<%L>", "<\x00one>\r\n<\x01>\n<three\x03>\n<two\x02>\n<four\x04>\n<long end>\n<one\n<two>\n<three\n<four>\n"},
	} {
		out := t.TempDir()
		p := shell("exec cat", to(out, "a"))
		p.Format = c.format
		r := newRig(t, p)
		r.put(rec{"a", "\x00one\r\n\x01", first})
		r.put(rec{"a", "", last})
		r.put(rec{"a", "two", first}, rec{"b", "three\x03\nfo", first})
		r.put(rec{"a", "\x02", last}, rec{"b", "u", middle})
		r.put(rec{"b", "r\x04", last})
		r.put(rec{"long", "long end", record.PieceFirst})
		r.put(rec{"long", "", record.PieceLast | record.Unterminated})
		r.put(rec{"long", "one", record.PieceFirst}, rec{"long", "", record.PieceFirst | record.Break}) // of another writer
		r.put(rec{"long", "two\n", record.PieceLast})
		r.put(rec{"long", "three", record.PieceFirst}, rec{"long", "fo", record.PieceFirst | record.Break}) // of another writer, too
		r.put(rec{"long", "", record.PieceLast | record.Unterminated | record.Break}, rec{"long", "ur\n", record.PieceLast})
		await(t, "all is acked: nothing is held", func() bool { return r.backlog(p.Cursor) == 0 })
		r.drain()
		got, err := os.ReadFile(filepath.Join(out, "a"))
		must(t, err)
		if string(got) != c.want {
			t.Errorf("with format %q got %q, want %q", c.format, got, c.want)
		}
	}
}

// TestABinaryRecordThatIsGivenUpIsGivenAsItIs: without a line feed.
func TestABinaryRecordThatIsGivenUpIsGivenAsItIs(t *testing.T) {
	out := t.TempDir()
	p := shell("exec cat", to(out, "a"))
	r := newRig(t, p)
	r.put(rec{"a", "\x00one", record.Binary | record.PieceFirst})
	r.put(rec{"a", "\x01two", record.Binary}) // the role of the source was killed
	await(t, "all is acked", func() bool { return r.backlog(p.Cursor) == 0 })
	r.drain()
	if got, err := os.ReadFile(filepath.Join(out, "a")); err != nil || string(got) != "\x00one\x01two" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestOnlyWhatMatchesIsGivenInTheFormatThatIsAskedFor(t *testing.T) {
	out := t.TempDir()
	p := shell("exec cat", to(out, "a"))
	p.Hosts, p.Path, p.Format = "web-*", "logs/*", "%H %F %P: %L"
	r := newRig(t, p)
	r.put(rec{"logs/a", "one\ntwo\r\n", 0}, rec{"other/a", "three\n", 0})
	r.put(rec{"other/a", "four\n", 0})
	r.drain()
	want := []string{"web-01 logs/a 7: one", "web-01 logs/a 7: two\r"}
	if got := read(t, filepath.Join(out, "a")); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := r.backlog(p.Cursor); n != 0 {
		t.Errorf("%d batches are not acked, also such as have nothing for the plugin", n)
	}
}

// The examples in the documentation are those that run here.
// TestAPluginGetsObjects: one for each line, and for each piece of a long one, its end without
// bytes included.
func TestAPluginGetsObjects(t *testing.T) {
	out := t.TempDir()
	p := shell("exec cat", to(out, "a"))
	p.Format = "json"
	r := newRig(t, p)
	r.put(rec{"a", "one\n\xff\n", 0}, rec{"long", "begin", record.PieceFirst})
	r.put(rec{"long", "end\n", record.PieceLast}, rec{"b", "two\nlines", record.Binary})
	r.put(rec{"b", "all", record.Binary | record.PieceFirst}, rec{"b", "", record.Binary | record.PieceLast}, rec{"b", "", 0}, rec{"a", "last\n", 0})
	await(t, "all is acked: no piece is held", func() bool { return r.backlog(p.Cursor) == 0 })
	r.drain()
	want := []string{
		`"data":"one"`, `"data_base64":"/w=="`, `"flags":["first-piece"],"data":"begin"`, `"flags":["last-piece"],"data":"end"`, `"flags":["binary"],"data":"two\nlines"`,
		`"flags":["first-piece","binary"],"data":"all"`, `"flags":["last-piece","binary"],"data":""`, `"data":"last"`,
	}
	got := read(t, filepath.Join(out, "a"))
	if len(got) != len(want) {
		t.Fatalf("got %q", got)
	}
	seen := map[string]bool{}
	for i := range want {
		var fields struct{ Host, Seq string }
		err := json.Unmarshal([]byte(got[i]), &fields)
		if seen[fields.Seq] {
			t.Errorf("the seq %q stands twice", fields.Seq)
		}
		if seen[fields.Seq] = true; err != nil || fields.Host != "web-01" || !strings.HasSuffix(got[i], ","+want[i]+"}") {
			t.Errorf("object %d is %q (%v), want %s", i, got[i], err, want[i])
		}
	}
}

func TestTheDocumentationShowsThePluginsThatAreTested(t *testing.T) {
	doc, err := os.ReadFile("../../docs/plugins.md")
	must(t, err)
	for _, name := range []string{"alert.sh", "batch.sh", "store.py"} {
		text, err := os.ReadFile("../../testdata/plugins/" + name)
		must(t, err)
		if !strings.Contains(string(doc), string(text)) {
			t.Errorf("docs/plugins.md does not show testdata/plugins/%s as it is", name)
		}
	}
}

func TestTheAlertOfTheDocumentation(t *testing.T) {
	out := t.TempDir()
	script, err := filepath.Abs("../../testdata/plugins/alert.sh")
	must(t, err)
	p := shell("", to(out, "%{%Y}T.log"))
	p.Command, p.Args, p.Format = script, "", "%F: %L"
	r := newRig(t, p)
	r.put(rec{"a", "fine\nan ERROR\n", 0}, rec{"b", "ERROR \\n %s `x`\n", 0})
	r.drain()
	want := []string{"collector logs/**: a: an ERROR", "collector logs/**: b: ERROR \\n %s `x`"}
	if got := read(t, filepath.Join(out, time.Now().Format("2006")+".log")); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
