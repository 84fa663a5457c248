package holder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests run this binary again as holders and as workers of a file system that needs
// no kernel: its connection is the writing end of a FIFO, its service a line "serve PID
// VERSION WAY" in it. Who has the reading end sees who serves, and the end of the
// connection when its last descriptor is closed.

const (
	holderTest = "FTFUSE_HOLDER_TEST" // the test's folder
	fakeTest   = "FTFUSE_FAKE"        // what the first worker does amiss
	dyingTest  = "FTFUSE_DYING"       // the folder of a worker that is being killed
)

func TestMain(m *testing.M) {
	dir := os.Getenv(holderTest)
	switch {
	case os.Getenv(dyingTest) != "":
		os.Exit(dyingMain(os.Getenv(dyingTest)))
	case dir == "":
		os.Exit(m.Run())
	case os.Getenv(FDEnv) != "":
		os.Exit(fakeMain(dir))
	default:
		os.Exit(holderMain(dir))
	}
}

func testSettings(dir string) Settings {
	s := Settings{Point: filepath.Join(dir, "point"), Dir: filepath.Join(dir, "state"), Timeout: 4 * time.Second, Shutdown: time.Second}
	if text, err := os.ReadFile(filepath.Join(dir, "timeout")); err == nil {
		s.Timeout, _ = time.ParseDuration(string(text))
	}
	if text, err := os.ReadFile(filepath.Join(dir, "elsewhere")); err == nil {
		s.Point = string(text)
	}
	return s
}

func holderMain(dir string) int {
	stopGrace = 500 * time.Millisecond
	code, err := Run(Options{
		Args: os.Args, Version: trailer("version"), Settings: testSettings(dir), Config: []byte("first"),
		Logger: func(string, string) *slog.Logger {
			return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "holder:", err)
	}
	return code
}

// trailer is what a test has appended to this program's file: lines of "@NAME=VALUE".
func trailer(name string) string {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 200)
	if _, err := f.Seek(-int64(len(b)), io.SeekEnd); err != nil {
		return ""
	}
	n, _ := io.ReadFull(f, b)
	for line := range bytes.Lines(b[:n]) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "@"+name+"="); ok {
			return v
		}
	}
	return ""
}

// fakeMain is a worker.
func fakeMain(dir string) int {
	fault := trailer("fault")
	if once := os.Getenv(fakeTest); once != "" {
		if _, err := os.Stat(filepath.Join(dir, "faulted")); err != nil {
			fault = once
			_ = os.WriteFile(filepath.Join(dir, "faulted"), nil, 0o600)
		}
	}
	switch fault {
	case "exit78":
		return 78
	case "dies first":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	case "mute":
		select {}
	case "slow start":
		_ = os.WriteFile(filepath.Join(dir, "started"), nil, 0o600)
		for _, err := os.Stat(filepath.Join(dir, "go on")); err != nil; _, err = os.Stat(filepath.Join(dir, "go on")) {
			time.Sleep(time.Millisecond) // it hears nothing yet
		}
	}
	l, err := FromEnv()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fake:", err)
		return 1
	}
	if err := fakeServe(l, dir, fault); err != nil && !errors.Is(err, context.Canceled) {
		l.Failed(err)
		fmt.Fprintln(os.Stderr, "fake:", err)
		return 1
	}
	return 0
}

func fakeServe(l *Link, dir, fault string) error {
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer cancel()
	go func() { <-l.Stops(); cancel() }()
	usr := make(chan os.Signal, 4)
	signal.Notify(usr, unix.SIGUSR1, unix.SIGHUP)
	config, given := l.Config()
	if !given {
		config, _ = os.ReadFile(filepath.Join(dir, "config"))
	}
	s := testSettings(dir)
	if err := l.Hello(ctx, trailer("version"), s, config); err != nil {
		return err
	}
	if fault == "panics" {
		panic("as told")
	}
	if fault == "exit1" {
		return errors.New("a part does not open")
	}
	fd, saved, ok := l.Taken()
	way := "taken"
	a, err := Adopt(s.Dir)
	if err != nil {
		return err
	}
	if a != nil {
		if err := errors.Join(l.Keep(a.FD, a.Saved), a.Take()); err != nil {
			return err
		}
		fd, saved, ok, way = a.FD, a.Saved, true, "adopted"
	}
	if _, err := os.Stat(filepath.Join(dir, "wait early")); err == nil {
		_ = os.WriteFile(filepath.Join(dir, "early"), nil, 0o600)
		<-usr // a hangup
	}
	if !ok {
		if fd, err = unix.Open(filepath.Join(dir, "conn"), unix.O_WRONLY|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		saved, way = fmt.Appendf(nil, "saved %s", trailer("version")), "mounted"
		if err := l.Keep(fd, saved); err != nil {
			return err
		}
	}
	if !bytes.HasPrefix(saved, []byte("saved")) {
		return fmt.Errorf("saved is %q", saved)
	}
	o, err := NewOffer(s.Dir, l, s.Point, fd, saved)
	if err != nil {
		return err
	}
	defer o.Close()
	if fault == "hangs" {
		select {}
	}
	say := func(format string, args ...any) { _, _ = unix.Write(fd, fmt.Appendf(nil, format+"\n", args...)) }
	if _, err := os.Stat(filepath.Join(dir, "wait")); err == nil {
		say("waiting")
		<-usr // a hangup
	}
	if err := l.Ready(); err != nil {
		return err
	}
	say("serve %d %s %s %q", os.Getpid(), trailer("version"), way, config)
	return fakeWait(ctx, l, o, usr, say, fault)
}

func fakeWait(ctx context.Context, l *Link, o *Offer, usr chan os.Signal, say func(string, ...any), fault string) error {
	gone := l.Gone()
	if fault == "panics serving" {
		panic("as told")
	}
	for {
		select {
		case <-ctx.Done():
			if fault == "does not stop" {
				continue
			}
			say("drained")
			l.Unmounted()
			return nil
		case s := <-usr:
			if s == unix.SIGUSR1 {
				return errors.New("told to fail")
			}
			say("hangup")
			l.Reloaded(nil, nil)
		case <-l.Handover():
			say("left")
			return nil
		case <-o.Adopted():
			say("left")
			return nil
		case <-gone:
			gone = nil
			say("orphan")
		}
	}
}

// bench is a holder in a folder of its own.
type bench struct {
	t    *testing.T
	dir  string
	bin  string
	conn *os.File // the kernel's side
	line chan string
	cmd  *os.Process
	log  string

	config string // of the newest worker
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{t: t, dir: dir, bin: filepath.Join(dir, "ftfuse"), line: make(chan string, 64), log: filepath.Join(dir, "log")}
	b.install("@version=1")
	if err := unix.Mkfifo(filepath.Join(dir, "conn"), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(filepath.Join(dir, "conn"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	b.conn = os.NewFile(uintptr(fd), "conn")
	t.Cleanup(func() {
		b.conn.Close()
		b.killAll()
		if t.Failed() {
			text, _ := os.ReadFile(b.log)
			t.Logf("log:\n%s", text)
		}
	})
	return b
}

// killAll ends every process of this test, known by its environment. A holder goes first:
// it would start another worker.
func (b *bench) killAll() {
	if b.cmd != nil {
		_ = b.cmd.Kill()
		_, _ = b.cmd.Wait()
	}
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range all {
		env, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(env, []byte(holderTest+"="+b.dir+"\x00")) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(name, "/proc/%d/", &pid); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// install puts this binary with a trailer at the installed path, as package managers do.
func (b *bench) install(trailers ...string) {
	b.t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b.t.Fatal(err)
	}
	b.put(append(self, "\n"+strings.Join(trailers, "\n")+"\n"...))
}

func (b *bench) put(content []byte) {
	b.t.Helper()
	if err := os.WriteFile(b.bin+".new", content, 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(b.bin+".new", b.bin); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) write(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// start starts a holder, with files as descriptors 3 and on.
func (b *bench) start(env []string, files ...*os.File) {
	b.t.Helper()
	log, err := os.OpenFile(b.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		b.t.Fatal(err)
	}
	defer log.Close()
	p, err := os.StartProcess(b.bin, []string{b.bin, "-x"}, &os.ProcAttr{
		Dir: b.dir, Env: append(append(os.Environ(), holderTest+"="+b.dir), env...), Files: append([]*os.File{nil, log, log}, files...),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.cmd = p
	b.t.Cleanup(func() { _ = p.Kill(); _, _ = p.Wait() }) // not the newest, perhaps
}

const patience = 20 * time.Second

// next is the next line of the connection; "" is its end.
func (b *bench) next() string {
	b.t.Helper()
	if err := b.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		b.t.Fatal(err)
	}
	var line []byte
	one := make([]byte, 1)
	for {
		n, err := b.conn.Read(one)
		if n == 0 {
			if !errors.Is(err, io.EOF) {
				b.t.Fatalf("nothing comes from the connection: %v", err)
			}
			return ""
		}
		if one[0] == '\n' {
			return string(line)
		}
		line = append(line, one[0])
	}
}

// served waits until a worker serves, which was started in the way given, and returns its
// pid. Before the first one the FIFO has no writer.
func (b *bench) served(version, way string) int {
	b.t.Helper()
	until := time.Now().Add(patience)
	for {
		l := b.next()
		if l == "" && time.Now().Before(until) {
			pause(b.t)
			continue
		}
		var pid int
		var v, w string
		if _, err := fmt.Sscanf(l, "serve %d %s %s %q", &pid, &v, &w, &b.config); err != nil || v != version || w != way {
			b.t.Fatalf("the connection says %q, want a worker of version %s that has it %s", l, version, way)
		}
		return pid
	}
}

func pause(t *testing.T) {
	select {
	case <-t.Context().Done():
	case <-time.After(2 * time.Millisecond):
	}
}

func (b *bench) says(want string) {
	b.t.Helper()
	if l := b.next(); l != want {
		b.t.Fatalf("the connection says %q, want %q", l, want)
	}
}

// logs waits until a holder of this test has logged text.
func (b *bench) logs(text string) {
	b.t.Helper()
	for until := time.Now().Add(patience); ; pause(b.t) {
		log, err := os.ReadFile(b.log)
		if err == nil && bytes.Contains(log, []byte(text)) {
			return
		}
		if time.Now().After(until) {
			b.t.Fatalf("nothing logged with %q (%v)", text, err)
		}
	}
}

func (b *bench) signal(s syscall.Signal) {
	b.t.Helper()
	if err := b.cmd.Signal(s); err != nil {
		b.t.Fatal(err)
	}
}

// exits waits for the holder's end.
func (b *bench) exits(code int) {
	b.t.Helper()
	done := make(chan *os.ProcessState, 1)
	go func() {
		st, _ := b.cmd.Wait()
		done <- st
	}()
	select {
	case st := <-done:
		if st.ExitCode() != code {
			b.t.Fatalf("the holder ended with %v, want exit code %d", st, code)
		}
	case <-time.After(patience):
		b.t.Fatal("the holder does not end")
	}
}

// dropped waits until nobody has the connection.
func (b *bench) dropped() {
	b.t.Helper()
	for {
		if l := b.next(); l == "" {
			return
		}
	}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// runs reports whether a process has not ended.
func runs(t *testing.T, pid int) bool {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return !exited(fd, 0)
}
