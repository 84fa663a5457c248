package offline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/internal/record"
	"ftfuse/mount/capture"
	"ftfuse/mount/spool"
)

// memory is a capture that keeps what it is fed, by source.
type memory struct {
	mu      sync.Mutex
	sources map[uint64]capture.Source
	newest  uint64            // id
	bytes   map[string][]byte // by path, holes left out
	ends    map[string]int    // lines that were ended
	fed     chan struct{}     // capacity 1
	after   func()            // called once, by Feed when it is done
	ending  func()            // called once, by EndLine
	refuse  error             // returned once, by ChangeSource, which changes nothing
	unfed   error             // returned by Feed, which takes nothing
	skip    string            // a path that its rules do not transfer
}

var _ Capture = (*memory)(nil)

func newMemory() *memory {
	return &memory{sources: map[uint64]capture.Source{}, bytes: map[string][]byte{}, ends: map[string]int{}, fed: make(chan struct{}, 1)}
}

func (m *memory) Sources(fn func(uint64, capture.Source)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, s := range m.sources {
		fn(id, s)
	}
	return nil
}

func (m *memory) AddSource(_ context.Context, s capture.Source) (uint64, error) {
	if len(s.Path) >= record.MaxString {
		return 0, errors.New("the queue does not take that path")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.newest++
	m.sources[m.newest] = s
	return m.newest, nil
}

func (m *memory) ChangeSource(_ context.Context, id uint64, change func(*capture.Source)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.refuse; err != nil {
		m.refuse = nil
		return err
	}
	s := m.sources[id]
	change(&s)
	m.sources[id] = s
	return nil
}

func (m *memory) Feed(_ context.Context, id uint64, off int64, data []byte, hole bool, _ capture.Fed) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unfed != nil {
		return m.unfed
	}
	s, ok := m.sources[id]
	if ok && s.Path == m.skip {
		return fmt.Errorf("feed: %w", capture.ErrSkipped)
	}
	if !ok || off < s.Pos || off > s.Pos && !hole {
		return fmt.Errorf("fed source %d at %d, which is at %d", id, off, s.Pos)
	}
	if s.Pos < capture.MaxBegin && off == s.Pos && int64(len(s.Begin)) == s.Pos {
		s.Begin = append(s.Begin, data[:min(len(data), capture.MaxBegin-len(s.Begin))]...)
	}
	s.Pos, s.Boot = off+int64(len(data)), thisBoot
	m.sources[id] = s
	m.bytes[s.Path] = append(m.bytes[s.Path], data...)
	select {
	case m.fed <- struct{}{}:
	default:
	}
	if after := m.after; after != nil {
		m.after = nil
		after()
	}
	return nil
}

func (m *memory) EndLine(_ context.Context, id uint64, done bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.sources[id]
	if !ok {
		return capture.ErrNoSource
	}
	m.ends[s.Path]++
	if ending := m.ending; ending != nil {
		m.ending = nil
		ending()
	}
	s.Done = s.Done || done
	m.sources[id] = s
	return nil
}

func (m *memory) DropSource(_ context.Context, id uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sources, id)
	return nil
}

func (m *memory) set(fn func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fn()
}

func (m *memory) got(path string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.bytes[path])
}

// files are how many files are known.
func (m *memory) files() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sources {
		if s.Kind == capture.SourceFile {
			n++
		}
	}
	return n
}

// rig is a directory and a Taker of it.
type rig struct {
	*testing.T
	dir string
	m   *memory
	t   *Taker
}

func newRig(t *testing.T, o Options) *rig {
	r := &rig{T: t, dir: t.TempDir(), m: newMemory()}
	r.open(o)
	return r
}

func (r *rig) open(o Options) {
	r.Helper()
	d, err := Open(r.dir)
	r.must(err)
	o.Dir, o.Capture = d, r.m
	if o.Matches == nil {
		o.Matches = func(string) bool { return true }
	}
	r.t, err = New(o)
	r.must(err)
	t := r.t
	r.Cleanup(func() { t.Close() })
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) write(name, data string) *os.File {
	r.Helper()
	f, err := os.OpenFile(filepath.Join(r.dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	r.must(err)
	_, err = f.WriteString(data)
	r.must(err)
	r.Cleanup(func() { f.Close() })
	return f
}

func (r *rig) want(name, want string) {
	r.Helper()
	if got := r.m.got(name); got != want {
		r.Errorf("%s: got %.100q, want %.100q", name, got, want)
	}
}

func (r *rig) there(name string) bool {
	_, err := os.Lstat(filepath.Join(r.dir, name))
	return err == nil
}

// run runs the Taker until the test ends.
func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	r.t.Serving()
	go func() { done <- r.t.Run(ctx) }()
	r.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.Error(err)
		}
	})
}

// until waits for what other goroutines do.
func (r *rig) until(what string, ok func() bool) {
	r.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			r.Fatalf("in vain: %s", what)
		}
	}
}

func TestJudge(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789abcdef"), 64)[:capture.MaxBegin]
	s := capture.Source{Dev: 1, Ino: 2, Birth: 3, Boot: thisBoot, Begin: long, Pos: 1000}
	tiny := s
	tiny.Begin, tiny.Pos = []byte("abc"), 3
	fresh := s
	fresh.Begin, fresh.Pos = nil, 0
	noBirth := s
	noBirth.Birth = 0
	other := bytes.Clone(long)
	other[511]++
	earlier := [16]byte{1}
	for name, tc := range map[string]struct {
		s    capture.Source
		dev  uint64
		size int64
		head []byte
		boot [16]byte
		want Verdict
	}{
		"as it was":                           {s, 1, 1000, long, thisBoot, Same},
		"grown":                               {s, 1, 2000, long, thisBoot, Same},
		"grown from less than is compared":    {tiny, 1, 600, append([]byte("abc"), long[:509]...), thisBoot, Same},
		"nothing taken yet":                   {fresh, 1, 600, long, thisBoot, Same},
		"begins otherwise":                    {s, 1, 2000, other, thisBoot, Anew},
		"begins otherwise, and is shorter":    {s, 1, 900, other, earlier, Anew},
		"truncated to nothing":                {s, 1, 0, nil, thisBoot, Anew},
		"truncated to nothing before a boot":  {s, 1, 0, nil, earlier, Anew},
		"truncated":                           {s, 1, 900, long, thisBoot, Anew},
		"shorter after a boot":                {s, 1, 900, long, earlier, Shorter},
		"other device, same beginning":        {s, 9, 2000, long, earlier, Same},
		"other device, other beginning":       {s, 9, 2000, other, thisBoot, Another},
		"other device, nothing to compare":    {fresh, 9, 2000, long, thisBoot, Another},
		"other device without times of birth": {noBirth, 9, 2000, long, thisBoot, Another},
	} {
		if got := Judge(&tc.s, tc.dev, tc.size, tc.head, tc.boot); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

// A file that somebody has under another name, too, is taken, and neither emptied nor removed.
func TestAFileWithSeveralNamesIsTakenOnceAndLeft(t *testing.T) {
	r := newRig(t, Options{})
	data := string(bytes.Repeat([]byte("a line of text\n"), 10_000))
	r.write("a.log", data).Close()
	r.must(os.Link(filepath.Join(r.dir, "a.log"), filepath.Join(r.dir, "b.log")))
	r.must(r.t.TakeAll(r.Context()))
	r.t.Serving()
	r.must(r.t.pass(r.Context()))
	r.want("a.log", data)
	r.want("b.log", "")
	for _, name := range []string{"a.log", "b.log"} {
		if got, err := os.ReadFile(filepath.Join(r.dir, name)); err != nil || string(got) != data {
			t.Errorf("%s has %d bytes (%v), want %d as before", name, len(got), err, len(data))
		}
	}
}

// Committed bytes are punched out, but for the block by which the file is known again.
func TestSpaceIsGivenBackAndTheFileIsStillKnown(t *testing.T) {
	r := newRig(t, Options{Chunk: 64 << 10})
	data := string(bytes.Repeat([]byte("a line of text\n"), 100_000))
	r.write("a.log", data).Close()
	r.must(r.t.TakeAll(r.Context()))
	var st unix.Stat_t
	r.must(unix.Stat(filepath.Join(r.dir, "a.log"), &st))
	if st.Size != int64(len(data)) || st.Blocks*512 > 16<<10 {
		t.Errorf("%d bytes take %d of disk, want at most 16 KiB", st.Size, st.Blocks*512)
	}
	r.write("a.log", "more\n").Close()
	r.must(r.t.Close())
	r.open(Options{})
	r.must(r.t.TakeAll(r.Context()))
	r.want("a.log", data+"more\n")
	r.write("a.log", data).Close()
	r.must(r.t.TakeAll(r.Context()))
	r.must(r.t.Close())
	r.open(Options{})
	r.must(r.t.TakeAll(r.Context()))
	r.want("a.log", data+"more\n"+data)
}

// Between the last comparison and the punch somebody truncated the file and wrote it anew: that
// was punched out unread. Who opens it then waits until it is punched.
func TestWhatIsWrittenAnewBeforeThePunchIsNotPunchedOut(t *testing.T) {
	r := newRig(t, Options{Chunk: 64 << 10})
	first, second := strings.Repeat("the first text\n", 5_000), strings.Repeat("another text\n", 30_000)
	r.write("a.log", first).Close()
	anew := func() error {
		f, err := os.OpenFile(filepath.Join(r.dir, "a.log"), os.O_WRONLY|os.O_TRUNC|unix.O_NONBLOCK, 0)
		if err == nil {
			_, err = f.WriteString(second)
			r.must(f.Close())
		}
		return err
	}
	r.at("offline/punching", r.pass, func() {
		if err := anew(); !errors.Is(err, unix.EWOULDBLOCK) {
			t.Errorf("opened in the middle of a punch: %v", err)
		}
	})
	r.want("a.log", first)
	r.must(anew())
	r.pass()
	r.want("a.log", first+second)
}

// While a file is taken somebody truncates it and writes it anew: what stands there then is
// neither punched out nor taken for what would have come next.
func TestAFileThatIsWrittenAnewWhileItIsTaken(t *testing.T) {
	for name, keepOpen := range map[string]bool{"and closed": false, "and kept open": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{Chunk: 64 << 10})
			first, second := bytes.Repeat([]byte("the first text\n"), 20_000), bytes.Repeat([]byte("another text\n"), 30_000)
			r.write("a.log", string(first)).Close()
			r.m.after = func() {
				f, err := os.OpenFile(filepath.Join(r.dir, "a.log"), os.O_WRONLY|os.O_TRUNC, 0)
				r.must(err)
				_, err = f.Write(second)
				r.must(err)
				if !keepOpen {
					r.must(f.Close())
				}
				r.Cleanup(func() { f.Close() })
			}
			r.must(r.t.TakeAll(r.Context()))
			r.run() // what is marked is looked at
			want := string(first[:64<<10]) + string(second)
			r.until("all of it", func() bool { return len(r.m.got("a.log")) >= len(want) })
			r.want("a.log", want)
		})
	}
}

// What the queue did not commit in time the Taker does not hold for done: else bytes of a
// file that was written anew are passed over as taken.
func TestAChangeThatIsNotCommittedIsMadeAgain(t *testing.T) {
	r := newRig(t, Options{Keep: true})
	r.write("a.log", "the first text\n").Close()
	r.must(r.t.TakeAll(r.Context()))
	r.must(os.WriteFile(filepath.Join(r.dir, "a.log"), []byte("another text, and longer\n"), 0o644))
	refuse := func() {
		t.Helper()
		r.m.refuse = context.DeadlineExceeded
		if err := r.t.TakeAll(r.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v, want the error of the change", err)
		}
	}
	refuse()
	r.must(r.t.TakeAll(r.Context()))
	r.want("a.log", "the first text\nanother text, and longer\n")

	r.must(r.t.Close())
	was := r.m.sources[1].Dev
	s := r.m.sources[1]
	s.Dev++ // the devices are numbered anew
	r.m.sources[1] = s
	r.open(Options{Keep: true})
	refuse()
	r.must(r.t.TakeAll(r.Context()))
	if got := r.m.sources[1].Dev; got != was {
		t.Errorf("the source is of device %d, want %d", got, was)
	}
}

// A file stays while it is open for writing, and before the mount; then it goes, and with it
// what is known of it.
func TestAFileIsRemovedWhenNobodyWritesToIt(t *testing.T) {
	r := newRig(t, Options{})
	f := r.write("a.log", "one\nno end")
	r.must(r.t.TakeAll(r.Context()))
	if r.m.ends["a.log"] != 0 {
		t.Error("the line of a program that may go on with it was ended")
	}
	r.run()
	_, err := f.WriteString(" of it\n")
	r.must(err)
	r.until("what is written to it is taken", func() bool { return r.m.got("a.log") == "one\nno end of it\n" })
	if !r.there("a.log") || r.t.Stats().Open != 1 {
		t.Errorf("removed while it is open for writing; %+v", r.t.Stats())
	}
	r.must(f.Close())
	r.until("it is removed and forgotten", func() bool { return !r.there("a.log") && r.m.files() == 0 })
	if s := r.t.Stats(); s.Removed != 1 || s.Open != 0 || s.Bytes != 17 || r.m.ends["a.log"] == 0 {
		t.Errorf("%+v, %d lines ended", s, r.m.ends["a.log"])
	}
}

// Who is about to open a file while it is removed writes to a file without a name: that is
// taken, too.
func TestWhatALateOpenerWritesIsTaken(t *testing.T) {
	r := newRig(t, Options{})
	r.write("a.log", "one\n").Close()
	r.must(r.t.TakeAll(r.Context()))
	r.t.Serving()
	r.must(r.t.pass(r.Context()))
	if r.there("a.log") || len(r.t.removed) != 1 {
		t.Fatal("it was not removed")
	}
	late, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", r.t.removed[0].file.Fd()), os.O_WRONLY|os.O_APPEND, 0)
	r.must(err)
	r.run()
	_, err = late.WriteString("late\n")
	r.must(err)
	r.until("the late line is taken", func() bool { return r.m.got("a.log") == "one\nlate\n" })
	if r.m.files() != 1 {
		t.Error("it was forgotten while it is open for writing")
	}
	r.must(late.Close())
	r.until("it is forgotten", func() bool { return r.m.files() == 0 })
}

func TestFilesInNewAndRenamedDirectoriesAreNoticed(t *testing.T) {
	r := newRig(t, Options{Keep: true})
	r.must(os.MkdirAll(filepath.Join(r.dir, "old"), 0o755))
	r.must(r.t.TakeAll(r.Context()))
	r.run()
	f := r.write("old/a.log", "one\n")
	r.until("the first line", func() bool { return r.m.got("old/a.log") == "one\n" })
	r.must(os.MkdirAll(filepath.Join(r.dir, "new/deep"), 0o755))
	r.write("new/deep/b.log", "two\n")
	r.until("a file in a new directory", func() bool { return r.m.got("new/deep/b.log") == "two\n" })
	r.must(os.Rename(filepath.Join(r.dir, "old"), filepath.Join(r.dir, "moved")))
	_, err := f.WriteString("three\n")
	r.must(err)
	r.until("a file in a renamed directory goes on under its path", func() bool { return r.m.got("old/a.log") == "one\nthree\n" })
	if got, err := os.ReadFile(filepath.Join(r.dir, "moved/a.log")); err != nil || string(got) != "one\nthree\n" {
		t.Errorf(`Keep changed a file: %q, %v`, got, err)
	}
}

// What the queue has no room for stays, and follows.
func TestWithoutRoomFilesStay(t *testing.T) {
	var mu sync.Mutex
	room := 3
	r := newRig(t, Options{Chunk: 8 << 10, Room: func() bool {
		mu.Lock()
		defer mu.Unlock()
		room--
		return room >= 0
	}})
	data := string(bytes.Repeat([]byte("a line of text\n"), 4000))
	r.write("a.log", data).Close()
	if err := r.t.TakeAll(r.Context()); !errors.Is(err, ErrNoRoom) {
		t.Fatalf("got %v, want no room", err)
	}
	r.want("a.log", data[:16<<10])
	r.run()
	mu.Lock()
	room = 1 << 30
	mu.Unlock()
	r.until("all of it is taken and removed", func() bool { return r.m.got("a.log") == data && !r.there("a.log") })
}

// Room that a program has reserved is not taken for bytes, and its file stays.
func TestReservedRoomIsNoData(t *testing.T) {
	r := newRig(t, Options{})
	block := string(bytes.Repeat([]byte("x"), 4096))
	f := r.write("a.log", block)
	r.must(unix.Ftruncate(int(f.Fd()), 1<<20))
	r.must(f.Close())
	r.must(r.t.TakeAll(r.Context()))
	r.t.Serving()
	r.must(r.t.pass(r.Context()))
	r.want("a.log", block)
	if !r.there("a.log") {
		t.Error("removed with room that was reserved")
	}
}

// A program sizes its file ahead and fills it later. The block that it is writing ends in
// zeros, and so do holes that it leaves for a while: neither is passed over.
func TestAFileThatWasSizedAheadIsTakenAsItIsFilled(t *testing.T) {
	r := newRig(t, Options{})
	data := bytes.Repeat([]byte("a line of text\n"), 3000)
	f, err := os.Create(filepath.Join(r.dir, "a.log"))
	r.must(err)
	defer f.Close()
	write := func(from, to int) {
		t.Helper()
		_, err := f.WriteAt(data[from:to], int64(from))
		r.must(err)
	}
	taken := func(upto int) {
		t.Helper()
		r.must(r.t.TakeAll(r.Context()))
		if got := r.m.got("a.log"); got != string(data[:upto]) {
			t.Errorf("%d bytes are taken, want the first %d: %.60q", len(got), upto, got[min(len(got), upto):])
		}
	}
	r.must(f.Truncate(1 << 20))
	write(0, 100)
	taken(100)
	write(100, 3000)
	taken(3000)
	write(8192, 9000) // before what lies in front of it
	taken(3000)
	write(3000, 8192)
	taken(9000)
	write(20480, 30000) // and never what does
	taken(9000)
	r.must(f.Close())
	r.must(r.t.TakeAll(r.Context()))
	zeros := bytes.Repeat([]byte{0}, 12288-9000) // to the end of the block; a hole is left out
	r.want("a.log", string(data[:9000])+string(zeros)+string(data[20480:30000]))
	if !r.there("a.log") {
		t.Error("removed with room that was reserved")
	}
}

func TestWhatRulesDoNotTransferIsLeft(t *testing.T) {
	r := newRig(t, Options{Matches: func(path string) bool { return path != "no.log" }})
	r.write("no.log", "one\n").Close()
	r.write("yes.log", "two\n").Close()
	r.must(os.Symlink("no.log", filepath.Join(r.dir, "link")))
	r.must(unix.Mkfifo(filepath.Join(r.dir, "fifo"), 0o644))
	r.must(r.t.TakeAll(r.Context()))
	r.want("yes.log", "two\n")
	if r.m.files() != 1 || !r.there("no.log") {
		t.Errorf("%d files are known, want 1", r.m.files())
	}
}

// A tree that is deeper than any path on the mount keeps nothing else from being taken, and
// the mount from starting.
func TestPathsLongerThanTheMountTakesAreLeft(t *testing.T) {
	var log bytes.Buffer
	r := newRig(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	r.write("z.log", "one\n").Close()
	dir, err := unix.Open(r.dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	r.must(err)
	name := strings.Repeat("d", 250)
	at := 0
	for ; at <= record.MaxString+len(name); at += len(name) + 1 {
		file, err := unix.Openat(dir, "a.log", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		r.must(err)
		_, err = unix.Write(file, []byte("deep\n"))
		r.must(errors.Join(err, unix.Close(file), unix.Mkdirat(dir, name, 0o755)))
		sub, err := unix.Openat(dir, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		r.must(errors.Join(err, unix.Close(dir)))
		dir = sub
	}
	r.must(unix.Close(dir))
	r.must(r.t.TakeAll(r.Context()))
	r.must(r.t.TakeAll(r.Context()))
	r.want("z.log", "one\n")
	for path := range r.m.bytes {
		if len(path) > spool.MaxPath {
			t.Fatalf("a path of %d bytes was taken", len(path))
		}
	}
	if got, want := r.m.files(), 2+spool.MaxPath/(len(name)+1); got != want {
		t.Errorf("%d files were taken, want %d", got, want)
	}
	if n := strings.Count(log.String(), "cannot be taken in"); n != 1 {
		t.Errorf("%d warnings, want 1 of the directory that is too deep: %.300s", n, log.String())
	}
}

// A pass does not meet a file that is renamed while it runs from a directory that is to come
// to one that it has listed; that file is no other one, and is not taken again.
func TestAFileThatIsRenamedDuringAPassIsTakenOnce(t *testing.T) {
	var during func()
	r := newRig(t, Options{Keep: true, Matches: func(path string) bool {
		if do := during; do != nil && path == "a/first.log" {
			during = nil
			do()
		}
		return true
	}})
	for _, name := range []string{"a", "b"} {
		r.must(os.Mkdir(filepath.Join(r.dir, name), 0o755))
	}
	r.write("a/first.log", "first\n").Close()
	r.write("b/x.log", "one\n").Close()
	r.must(r.t.TakeAll(r.Context()))
	during = func() { r.must(os.Rename(filepath.Join(r.dir, "b/x.log"), filepath.Join(r.dir, "a/x.log"))) }
	r.must(r.t.pass(r.Context()))
	if during != nil || r.there("b/x.log") {
		t.Fatal("it was not renamed during the pass")
	}
	r.write("a/x.log", "two\n").Close()
	for range 3 {
		r.must(r.t.pass(r.Context()))
	}
	r.want("b/x.log", "one\ntwo\n")
	r.want("a/x.log", "")
	r.must(os.Remove(filepath.Join(r.dir, "a/x.log")))
	r.run()
	r.until("what is gone is forgotten", func() bool { return r.m.files() == 1 })
}

// Rules that stop transferring a file, and do so again, go on where it was.
func TestAFileThatRulesExcludeForAWhileIsTakenOnce(t *testing.T) {
	transfer := true
	r := newRig(t, Options{Keep: true, Matches: func(string) bool { return transfer }})
	r.write("a.log", "one\n").Close()
	r.must(r.t.TakeAll(r.Context()))
	transfer = false
	for range 3 {
		r.must(r.t.pass(r.Context()))
	}
	transfer = true
	r.write("a.log", "two\n").Close()
	r.must(r.t.TakeAll(r.Context()))
	r.want("a.log", "one\ntwo\n")
}

// After a power loss a file that is shorter than what was taken of it goes on at its end.
func TestBytesThatAPowerLossTookAreNotWaitedFor(t *testing.T) {
	r := newRig(t, Options{Keep: true})
	r.write("a.log", "one\ntwo\n").Close()
	r.must(r.t.TakeAll(r.Context()))
	r.must(r.t.Close())
	for id, s := range r.m.sources {
		s.Boot = [16]byte{1} // of an earlier start of the machine
		r.m.sources[id] = s
	}
	r.must(os.Truncate(filepath.Join(r.dir, "a.log"), 4))
	r.open(Options{Keep: true})
	r.must(r.t.TakeAll(r.Context()))
	r.want("a.log", "one\ntwo\n")
	r.write("a.log", "four\n").Close()
	r.must(r.t.TakeAll(r.Context()))
	r.want("a.log", "one\ntwo\nfour\n")
}

// While rules change, and where a file was renamed, the Taker and the capture judge a file by
// different rules or paths: bytes that the capture did not transfer counted as taken, and the
// file was removed.
func TestAFileThatTheCaptureDoesNotTransferIsLeft(t *testing.T) {
	r := newRig(t, Options{})
	first := r.write("a.log", "one\n")
	r.must(r.t.TakeAll(r.Context()))
	_, err := first.WriteString("two\n")
	r.must(err)
	r.must(first.Close())
	r.write("b.log", "b\n").Close()
	r.must(os.Rename(filepath.Join(r.dir, "a.log"), filepath.Join(r.dir, "a.log.1")))
	r.m.set(func() { r.m.skip = "a.log" })
	r.run()
	r.until("another file is taken", func() bool { return !r.there("b.log") && r.m.files() == 1 })
	if got, err := os.ReadFile(filepath.Join(r.dir, "a.log.1")); err != nil || string(got) != "one\ntwo\n" {
		t.Errorf("it has %q (%v), want it as it was", got, err)
	}
	r.m.set(func() { r.m.skip = "" })
	r.write("a.log.1", "three\n").Close()
	r.until("it is taken when the rules say so", func() bool { return r.m.got("a.log") == "one\ntwo\nthree\n" && !r.there("a.log.1") })
}

// Nor does it keep the Taker from going on that a file is removed already.
func TestWhatALateOpenerWritesMayNotBeTransferred(t *testing.T) {
	r := newRig(t, Options{})
	r.write("a.log", "one\n").Close()
	r.must(r.t.TakeAll(r.Context()))
	r.t.Serving()
	r.must(r.t.pass(r.Context()))
	late, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", r.t.removed[0].file.Fd()), os.O_WRONLY|os.O_APPEND, 0)
	r.must(err)
	_, err = late.WriteString("late\n")
	r.must(err)
	r.m.set(func() { r.m.skip = "a.log" })
	r.t.removed[0].since = time.Time{}
	r.must(r.t.letGo(r.Context()))
	r.must(late.Close())
	r.must(r.t.letGo(r.Context()))
	if r.m.files() != 0 || len(r.t.removed) != 0 {
		t.Errorf("%d files are known, %d removed ones watched", r.m.files(), len(r.t.removed))
	}
}
