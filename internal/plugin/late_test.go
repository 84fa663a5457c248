package plugin

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/record"
)

// Beginnings of lines whose rest does not come have no batch of the queue, and number 0: a plugin
// that remembered that number threw away all but the first of them.
func TestEveryLineThatWaitedTooLongIsStored(t *testing.T) {
	script, err := filepath.Abs("../../testdata/plugins/store.py")
	must(t, err)
	db := filepath.Join(t.TempDir(), "db")
	p := Plugin{
		Cursor: CursorOf("test"), Rule: "logs/**", Command: "/usr/bin/env", Args: Arguments([]string{"python3", script, db}), Ack: AckLine,
		Hosts: "*", Path: "**", Format: "%L", Time: "%s",
	}
	defer func(d time.Duration) { holdFor = d }(holdFor)
	holdFor = 10 * time.Millisecond
	r := newRig(t, p)
	for i, begin := range []string{"first", "second"} {
		r.put(rec{"long", begin, record.PieceFirst})
		await(t, "it is taken", func() bool { return r.set.Stats()[0].TakenBytes > uint64(6*i) && r.backlog(p.Cursor) == 0 })
	}
	r.drain()
	if got := sqliteLines(t, db); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("stored %q", got)
	}
	must(t, r.stop()) // before holdFor is what it was
}

// What a plugin writes to descriptor 3 by mistake filled the log as fast as it wrote.
func TestWhatAcknowledgesNothingIsLoggedAsRarelyAsStandardError(t *testing.T) {
	done := filepath.Join(t.TempDir(), "done")
	p := shell(`i=0; while [ $i -lt 3000 ]; do echo nonsense >&3; i=$((i+1)); done; : >"$0"; cat >/dev/null`, nil)
	p.Args += done + "\x00"
	p.Ack = AckLine
	r := newRig(t, p)
	await(t, "all of it was read", func() bool {
		_, err := os.Stat(done)
		return err == nil && r.set.Stats()[0].BadAcks == 3000
	})
	if n := strings.Count(r.log.String(), "descriptor 3"); n == 0 || n > 500 {
		t.Errorf("%d lines of the log about 3000 of a plugin", n)
	}
}

// The end of a line that is too long for descriptor 3 passed for an acknowledgement.
func TestTheEndOfALongLineAcknowledgesNothing(t *testing.T) {
	p := shell(`read -r b n l s; printf '%064dok %d\n' 0 "$n" >&3; cat >/dev/null`, nil)
	p.Ack = AckLine
	r := newRig(t, p)
	r.lines(0, 1)
	await(t, "it was read", func() bool { return r.set.Stats()[0].BadAcks > 0 || r.set.Stats()[0].TakenBatches > 0 })
	if n := r.set.Stats()[0].TakenBatches; n != 0 {
		t.Errorf("%d batches count as taken", n)
	}
}

// A carriage return inside a line made two rows of it.
func TestALineWithACarriageReturnIsStoredAsOne(t *testing.T) {
	script, err := filepath.Abs("../../testdata/plugins/store.py")
	must(t, err)
	db := filepath.Join(t.TempDir(), "db")
	p := shell("exec python3 "+script+" "+db, nil)
	p.Ack = AckLine
	r := newRig(t, p)
	r.put(rec{"logs/a", "10 %\r20 %\ndone\n", 0})
	await(t, "it is taken", func() bool { return r.backlog(p.Cursor) == 0 })
	r.drain()
	if got := sqliteLines(t, db); !slices.Equal(got, []string{"10 %\r20 %", "done"}) {
		t.Errorf("stored %q", got)
	}
}

// A reload that came while the role started its plugins left the old one beside the new.
func TestAReloadWhileThePluginsStart(t *testing.T) {
	for range 30 {
		out := t.TempDir()
		p := shell("cat >/dev/null; echo end >&2", nil)
		r := newRig(t, p)
		p.Args = Arguments([]string{"-c", "exec cat"})
		to(out, "a")(&p)
		must(t, r.set.Reconfigure([]Plugin{p}))
		r.lines(0, 1)
		await(t, "it is taken", func() bool { return r.backlog(p.Cursor) == 0 })
		r.drain()
		wantOnce(t, read(t, filepath.Join(out, "a")), 1)
	}
}
