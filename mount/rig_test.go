package mount

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ftfuse/config"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/record"
	"ftfuse/mount/holder"
	"ftfuse/queue"
)

// The daemon under test is a process of its own, this test binary run again: a process
// must not hold files of a mount that it serves, and a child can be killed.

const (
	envDaemon = "FTFUSE_TEST_DAEMON"
	envActor  = "FTFUSE_TEST_ACTOR"
	envHeld   = "FTFUSE_TEST_HELD"
	// envPatience is how long a write to a file with one node waits for room.
	envPatience = "FTFUSE_TEST_PATIENCE"
	// envHang is how long the request loop may be in one request.
	envHang = "FTFUSE_TEST_HANG"
	// envCapture is "daemon" where all tests run on a kernel that cannot write by itself
	// (TestAllOfItOnAnOldKernel).
	envCapture = "FTFUSE_TEST_CAPTURE"
)

// perWrite is a configuration with which the daemon sees every write(2).
const perWrite = "[[mount.rule]]\npath = \"**\"\nattribution = \"write\"\n"

// needPassthrough skips a test of what the kernel writes by itself.
func needPassthrough(t testing.TB) {
	t.Helper()
	if os.Getenv(envCapture) == "daemon" {
		t.Skip("an old kernel")
	}
}

func TestMain(m *testing.M) {
	MaybeHelper()
	if file := os.Getenv(envDaemon); file != "" {
		os.Exit(daemonMain(file))
	}
	if name := os.Getenv(envActor); name != "" {
		os.Exit(actorMain(name))
	}
	os.Exit(m.Run())
}

func daemonMain(file string) int {
	cfg, err := config.Load(file)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 78
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	defer profile()()
	reconnectGrace = 10 * time.Millisecond
	if d, err := time.ParseDuration(os.Getenv(envPatience)); err == nil {
		sharedPatience = d
	}
	if d, err := time.ParseDuration(os.Getenv(envHang)); err == nil {
		hangAfter = d
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	link, err := holder.FromEnv()
	if err == nil && link == nil && os.Getenv(envHeld) != "" {
		code, err := holder.Run(holder.Options{
			Settings: HolderSettings(cfg), Args: os.Args, Logger: func(string, string) *slog.Logger { return log },
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, "holder:", err)
			return 1
		}
		return code
	}
	go func() { // as main does
		<-link.Stops()
		cancel()
	}()
	if err == nil {
		err = Run(ctx, cfg, log, Worker{Link: link})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "daemon:", err)
		return 1
	}
	return 0
}

// nowhere is a group whose destination is never there.
const nowhere = "[[mount.forward]]\nprimary = [\"127.0.0.1:1\"]\n"

// rig is a daemon on a mount point of its own, whose destination is never there: what
// it captures stays in the queue, where the test reads it.
type rig struct {
	t      testing.TB
	dir    string
	point  string
	extra  string // TOML of [mount], and [mount.queue] after it
	groups string // TOML of [[mount.forward]]; empty: nowhere
	env    []string
	cred   *syscall.Credential // nil: as the test
	held   bool                // by a holder, which starts a worker again that was killed
	cmd    *exec.Cmd
	log    *logBuffer
	exit   chan error
}

// logBuffer keeps the daemon's log and tells when a line comes.
type logBuffer struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{}
}

func newRig(t testing.TB, extra string) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts by itself, chowns and drops privileges")
	}
	r := newRigStopped(t, extra)
	r.start()
	return r
}

func newRigStopped(t testing.TB, extra string) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, dir: dir, point: filepath.Join(dir, "mnt"), extra: extra}
	if err := os.MkdirAll(r.point, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.cmd != nil {
			r.kill()
		}
		_ = syscall.Unmount(r.point, syscall.MNT_DETACH)
		if (t.Failed() || os.Getenv("FTFUSE_TEST_LOG") != "") && r.log != nil {
			r.log.mu.Lock()
			t.Log("daemon's log:\n" + strings.Join(r.log.lines, "\n"))
			r.log.mu.Unlock()
		}
	})
	return r
}

func (r *rig) config() string {
	return fmt.Sprintf(`host = "src-1"
state_dir = %q
shutdown_timeout = "1s"
[mount]
point = %q
%s
%s`, filepath.Join(r.dir, "state"), r.point, r.extra, cmp.Or(r.groups, nowhere))
}

// launch starts a daemon and returns without waiting for it.
func (r *rig) launch() {
	r.t.Helper()
	file := filepath.Join(r.dir, "a.toml")
	if err := os.WriteFile(file, []byte(r.config()), 0o644); err != nil {
		r.t.Fatal(err)
	}
	r.cmd = exec.Command(os.Args[0])
	r.cmd.Env = append(os.Environ(), envDaemon+"="+file)
	if r.held {
		r.cmd.Env = append(r.cmd.Env, envHeld+"=1")
	}
	r.cmd.Env = append(r.cmd.Env, r.environment()...)
	if r.cred != nil {
		r.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.cred}
		r.cmd.Dir = "/"
	}
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.log = &logBuffer{more: make(chan struct{}, 1)}
	r.exit = make(chan error, 1)
	go r.collect(r.cmd, stderr, r.log, r.exit)
}

func (r *rig) collect(cmd *exec.Cmd, stderr io.Reader, log *logBuffer, exit chan<- error) {
	sc := bufio.NewScanner(stderr)
	for sc.Scan() {
		log.mu.Lock()
		log.lines = append(log.lines, sc.Text())
		log.mu.Unlock()
		select {
		case log.more <- struct{}{}:
		default:
		}
	}
	exit <- cmd.Wait()
	close(exit)
	close(log.more)
}

// environment is r.env, with what makes the kernel an old one if that is asked for.
func (r *rig) environment() []string {
	if os.Getenv(envCapture) != "daemon" {
		return r.env
	}
	points := failpoint.Env + "=kernel/no-passthrough=error"
	var env []string
	for _, v := range r.env {
		if more, ok := strings.CutPrefix(v, failpoint.Env+"="); ok {
			points += ";" + more
		} else {
			env = append(env, v)
		}
	}
	return append(env, points)
}

// readies are the pids of the workers that have served since the newest start.
func (r *rig) readies() (pids []int) {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	for _, line := range r.log.lines {
		if _, rest, ok := strings.Cut(line, "msg=ready"); ok {
			var pid int
			_, rest, _ = strings.Cut(rest, " pid=")
			fmt.Sscanf(rest, "%d", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

// awaitReadies waits until n workers have said that they serve, and returns the newest.
func (r *rig) awaitReadies(n int) (pid int) {
	r.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		if pids := r.readies(); len(pids) >= n {
			return pids[len(pids)-1]
		}
		select {
		case _, ok := <-r.log.more:
			if !ok && len(r.readies()) < n {
				r.t.Fatalf("the daemon ended before worker %d", n)
			}
		case <-limit:
			r.t.Fatalf("worker %d does not come", n)
		}
	}
}

func (r *rig) start() {
	r.t.Helper()
	r.launch()
	r.awaitLog("msg=ready")
}

// awaitLog waits until a line of the log since the newest start has text.
func (r *rig) awaitLog(text string) {
	r.t.Helper()
	limit := time.After(time.Minute)
	for {
		if r.logged(text) {
			return
		}
		select {
		case _, ok := <-r.log.more:
			if !ok && !r.logged(text) {
				r.t.Fatalf("the daemon ended without saying %q", text)
			}
		case <-limit:
			r.t.Fatalf("the daemon does not say %q", text)
		}
	}
}

func (r *rig) logged(text string) bool {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	for i := len(r.log.lines) - 1; i >= 0; i-- {
		if strings.Contains(r.log.lines[i], text) {
			return true
		}
	}
	return false
}

// stop ends the daemon in order.
func (r *rig) stop() {
	r.t.Helper()
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	if err := r.wait(); err != nil {
		r.t.Fatalf("daemon: %v", err)
	}
}

// kill kills the daemon: its holder first, so that no worker follows.
func (r *rig) kill() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill()
	if r.held {
		for _, pid := range r.readies() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	_ = r.wait()
}

func (r *rig) wait() error {
	if r.cmd == nil {
		return nil
	}
	select {
	case err := <-r.exit:
		r.cmd = nil
		return err
	case <-time.After(30 * time.Second):
		r.t.Fatal("the daemon does not end")
		return nil
	}
}

func (r *rig) path(name string) string { return filepath.Join(r.point, name) }

// testCursor is that of the one group, which has no name.
const testCursor = "forward/default"

// rec is one record as it was sealed.
type rec struct {
	record.Attr
	data string
}

// records returns everything in the queue of a daemon that has ended.
func (r *rig) records() []rec {
	r.t.Helper()
	if r.cmd != nil {
		r.t.Fatal("the daemon still has the queue")
	}
	q, err := queue.Open(filepath.Join(r.dir, "state", "mount", "queue"), queue.Options{Cursors: []string{testCursor}})
	if err != nil {
		r.t.Fatal(err)
	}
	defer q.Close()
	c, err := q.Cursor(testCursor)
	if err != nil {
		r.t.Fatal(err)
	}
	var all []rec
	for last := uint64(0); last < q.Stats().Committed; {
		it, err := c.Next(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		last = it.Seq
		rd, err := record.Open(it.Batch)
		if err != nil {
			r.t.Fatal(err)
		}
		for {
			one, err := rd.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				r.t.Fatal(err)
			}
			all = append(all, rec{one.Attr, string(one.Data)})
		}
	}
	return all
}

// delivered returns what was captured of each path, in order.
func (r *rig) delivered() map[string]string {
	r.t.Helper()
	parts := map[string]*strings.Builder{}
	for _, one := range r.records() {
		if parts[one.Path] == nil {
			parts[one.Path] = new(strings.Builder)
		}
		parts[one.Path].WriteString(one.data)
	}
	out := map[string]string{}
	for path, b := range parts {
		out[path] = b.String()
	}
	return out
}

func (r *rig) wantDelivered(path, want string) {
	r.t.Helper()
	if got := r.delivered()[path]; got != want {
		r.t.Fatalf("captured of %q: %s, want %s", path, brief(got), brief(want))
	}
}

func brief(s string) string {
	if len(s) > 200 {
		return fmt.Sprintf("%q... (%d bytes)", s[:200], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// actorMain runs a program of the tests in a process of its own.
func actorMain(name string) int {
	f := actors[name]
	if f == nil {
		fmt.Fprintln(os.Stderr, "no actor", name)
		return 2
	}
	if err := f(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

var actors = map[string]func(args []string) error{}

// soak is how much of something a test does: few, or many where there is time.
func soak(few, many int) int {
	if os.Getenv("FTFUSE_SOAK") != "" {
		return many
	}
	return few
}
