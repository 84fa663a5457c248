package plugin

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/queue"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rig is a queue with plugins over it.
type rig struct {
	t     *testing.T
	dir   string
	q     *queue.Queue
	set   *Set
	log   *logBuffer
	n     uint64
	other *queue.Cursor
	stop  func() error // ends Run; once
	build *record.Builder

	syncEvery time.Duration // default 5 ms
	exitGrace time.Duration // default 2 s
}

// logBuffer keeps what is logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const testHost = "web-01"

// shell is a plugin that runs a script.
func shell(script string, change func(p *Plugin)) Plugin {
	p := Plugin{
		Cursor: CursorOf("test"), Rule: "logs/**", Command: "/bin/sh", Args: Arguments([]string{"-c", script}), Ack: AckPipe,
		Hosts: "*", Path: "**", Format: "%L", Time: "%s",
	}
	if change != nil {
		change(&p)
	}
	return p
}

// newRig opens a queue in a directory of its own, with a cursor "other" that nothing reads
// and one for each plugin, and starts the plugins.
func newRig(t *testing.T, plugins ...Plugin) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), log: &logBuffer{}, build: record.NewBuilder(1 << 20)}
	r.open(plugins...)
	r.start(plugins...)
	t.Cleanup(func() {
		must(t, r.stop())
		must(t, r.q.Close())
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	return r
}

func (r *rig) open(plugins ...Plugin) {
	r.t.Helper()
	cursors := []string{"other"}
	for _, p := range plugins {
		cursors = append(cursors, p.Cursor)
	}
	var err error
	r.q, err = queue.Open(filepath.Join(r.dir, "queue"), queue.Options{Cursors: cursors})
	must(r.t, err)
	r.other, err = r.q.Cursor("other")
	must(r.t, err)
}

func (r *rig) start(plugins ...Plugin) {
	r.t.Helper()
	var err error
	r.set, err = Open(Options{
		Queue: r.q, Plugins: plugins, Host: "collector", Role: "receive", Dir: filepath.Join(r.dir, "plugin"),
		Logger: slog.New(slog.NewTextHandler(r.log, nil)), ExitGrace: cmp.Or(r.exitGrace, 2*time.Second), MinBackoff: time.Millisecond, MaxBackoff: 50 * time.Millisecond, SyncEvery: cmp.Or(r.syncEvery, 5*time.Millisecond),
	})
	must(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.set.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
}

// drain waits until everything was taken, and the plugins have ended by themselves.
func (r *rig) drain() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	must(r.t, r.q.Flush(ctx))
	if err := r.set.Drain(ctx); err != nil {
		r.t.Fatalf("drain: %v", err)
	}
}

// rec is a record to be sealed.
type rec struct {
	path, data string
	flags      uint16
}

// put commits one batch.
func (r *rig) put(recs ...rec) {
	r.t.Helper()
	r.n++
	b := sealed(r.build, r.n, recs...)
	_, err := r.q.Submit(r.t.Context(), &queue.Txn{Entries: []queue.Entry{{Batch: b}}})
	must(r.t, err)
}

func sealed(build *record.Builder, n uint64, recs ...rec) batch.Sealed {
	for _, x := range recs {
		a := record.Attr{Host: testHost, Path: x.path, PID: 7, Flags: x.flags, Time: 1700000000e9}
		if !build.Add(&a, []byte(x.data)) {
			panic("a test's record does not fit")
		}
	}
	return build.Seal(batch.ID{Lane: batch.Lane{Origin: batch.Origin{1}}, N: n}, 1e18)
}

// lines commits batches of one line each, from first on.
func (r *rig) lines(first, n int) {
	r.t.Helper()
	for i := first; i < first+n; i++ {
		r.put(rec{path: "logs/a", data: fmt.Sprintf("line %d\n", i)})
	}
}

// read returns the lines of a file; none where it is missing.
func read(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil
	}
	must(t, err)
	if len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// await waits until ok, which looks at what other processes do.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// backlog is how many batches a cursor has not passed.
func (r *rig) backlog(cursor string) uint64 {
	must(r.t, r.q.Flush(r.t.Context()))
	for _, c := range r.q.Stats().Cursors {
		if c.Name == cursor {
			return c.Waiting.Batches
		}
	}
	r.t.Fatalf("no cursor %q", cursor)
	return 0
}

// wantOnce checks that a file has the lines 0 to n-1, each exactly once, in order.
func wantOnce(t *testing.T, got []string, n int) {
	t.Helper()
	if len(got) != n {
		t.Fatalf("%d lines, want %d", len(got), n)
	}
	for i, l := range got {
		if want := fmt.Sprintf("line %d", i); l != want {
			t.Fatalf("line %d is %q, want %q", i, l, want)
		}
	}
}

// wantEach checks that the lines 0 to n-1 are there, each at least once, and no other, and
// returns how many stand twice or more.
func wantEach(t *testing.T, got []string, n int) (doubles int) {
	t.Helper()
	seen := map[string]int{}
	for _, l := range got {
		seen[l]++
	}
	for i := range n {
		l := fmt.Sprintf("line %d", i)
		if seen[l] == 0 {
			t.Errorf("%q is missing", l)
		}
		doubles += max(0, seen[l]-1)
		delete(seen, l)
	}
	for l := range seen {
		t.Errorf("%q was never written", l)
	}
	return doubles
}

// sqliteLines returns the lines that store.py has put into a file, in order.
func sqliteLines(t *testing.T, db string) []string {
	t.Helper()
	const script = "import sqlite3, sys\nfor l, in sqlite3.connect(sys.argv[1]).execute('select line from line order by rowid'): print(l.decode())"
	out, err := exec.Command("python3", "-c", script, db).Output()
	if err != nil {
		t.Fatalf("read the lines that the plugin stored: %v", err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}
