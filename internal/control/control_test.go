package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/status"
)

func serving() status.Role {
	return status.Role{Role: "relay", Host: "h", Serving: true, Queue: status.Queue{MaxBytes: 1, Cursors: []status.Cursor{{Name: "c", Oldest: time.Now().Add(-time.Minute)}}}}
}

func start(t *testing.T, o Options) *Server {
	t.Helper()
	if o.Status == nil {
		o.Status = serving
	}
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func get(t *testing.T, c *http.Client, url string) (code int, body string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func TestTheStatusIsCompleted(t *testing.T) {
	dir := t.TempDir()
	start(t, Options{Dir: dir})
	r, raw, err := Status(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if r.PID != os.Getpid() || r.Started.IsZero() || r.Now.Before(r.Started) || r.Version != status.Version || r.Host != "h" {
		t.Errorf("got %+v", r)
	}
	if age := r.Queue.Cursors[0].Age; age < 59 || age > 600 {
		t.Errorf("the oldest batch is %v s old, want about 60", age)
	}
	if !strings.Contains(string(raw), `"serving":true`) {
		t.Errorf("got %s", raw)
	}
}

// Whoever can open the socket can take data out of the queue.
func TestTheSocketIsItsOwnersAlone(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := t.TempDir()
	start(t, Options{Dir: dir})
	st, err := os.Lstat(SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket is %v", st.Mode())
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 1 {
		t.Errorf("there is more than the socket: %v", names)
	}
}

func TestNobodyAnswersWhereNoRoleRuns(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := Status(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a socket: %v", err)
	}
	if _, _, err := Status(t.Context(), filepath.Join(dir, "not", "there")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a directory: %v", err)
	}
	// What a kill -9 leaves.
	l, err := net.Listen("unix", SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, _, err := Status(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("with the socket of a dead role: %v", err)
	}
	s := start(t, Options{Dir: dir})
	if _, _, err := Status(t.Context(), dir); err != nil {
		t.Errorf("the socket of a dead role was not replaced: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(SocketPath(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a closed server left its socket: %v", err)
	}
}

// A handed over worker begins to answer before its predecessor ends.
func TestASuccessorTakesTheSocketOver(t *testing.T) {
	dir := t.TempDir()
	first := start(t, Options{Dir: dir})
	start(t, Options{Dir: dir, Status: func() status.Role { return status.Role{Host: "successor"} }})
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	r, _, err := Status(t.Context(), dir)
	if err != nil || r.Host != "successor" {
		t.Errorf("%q answers, %v", r.Host, err)
	}
}

func TestAFileInThePlaceOfTheSocketIsKept(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(SocketPath(dir), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(Options{Dir: dir, Status: serving}); err == nil || !strings.Contains(err.Error(), SocketPath(dir)) {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(SocketPath(dir)); err != nil || string(data) != "x" {
		t.Errorf("it is %q now, %v", data, err)
	}
}

// sockaddr_un holds 107 bytes.
func TestAStateDirectoryMayHaveALongName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("a", 200), strings.Repeat("b", 200))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := start(t, Options{Dir: dir})
	if r, _, err := Status(t.Context(), dir); err != nil || r.Host != "h" {
		t.Errorf("%+v, %v", r, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Status(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("closed: %v", err)
	}
}

// An export may run for hours; Close must cut it off, and wait for it: the role closes its
// queue next.
func TestCloseWaitsForWhatItCutsOff(t *testing.T) {
	dir := t.TempDir()
	began, hold := make(chan struct{}), make(chan struct{})
	s := start(t, Options{Dir: dir, Handlers: map[string]http.Handler{
		"GET /queue/export": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "first")
			w.(http.Flusher).Flush()
			close(began)
			<-r.Context().Done()
			<-hold
		}),
	}})
	resp, err := Client(dir).Get("http://role/queue/export")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	<-began
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	if data, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the reader takes %q for the whole", data)
	}
	select {
	case <-closed:
		t.Fatal("Close returned before the handler")
	case <-time.After(20 * time.Millisecond):
	}
	close(hold)
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestARoleThatDoesNotAnswerIsNotWaitedForForEver(t *testing.T) {
	dir := t.TempDir()
	release := make(chan struct{})
	start(t, Options{Dir: dir, Status: func() status.Role { <-release; return serving() }})
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := Status(ctx, dir); err == nil || !strings.Contains(err.Error(), "does not answer within") {
		t.Errorf("got %v", err)
	}
}

func TestWhatIsNoStatusIsAnError(t *testing.T) {
	for body, want := range map[string]string{"": "not its status", "[]": "not its status", `{"role": 1}`: "not its status"} {
		dir := t.TempDir()
		l, err := net.Listen("unix", SocketPath(dir))
		if err != nil {
			t.Fatal(err)
		}
		h := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })}
		go h.Serve(l)
		if _, _, err := Status(t.Context(), dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is taken: %v", body, err)
		}
		h.Close()
	}
	dir := t.TempDir()
	l, err := net.Listen("unix", SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	h := &http.Server{Handler: http.NotFoundHandler()}
	go h.Serve(l)
	defer h.Close()
	if _, _, err := Status(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("404 is taken: %v", err)
	}
}

func TestHTTPOnlyTells(t *testing.T) {
	dir := t.TempDir()
	var role status.Role
	s := start(t, Options{
		Dir: dir, HTTP: "127.0.0.1:0", Status: func() status.Role { return role },
		Handlers: map[string]http.Handler{"/queue/": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "secret") })},
	})
	base := "http://" + s.Addr().String()
	role = serving()
	role.Host = "<script>alert(1)</script>"
	for _, tc := range []struct {
		path, want string
		code       int
	}{
		{"/healthz", "ok", 200},
		{"/readyz", "ready", 200},
		{"/metrics", "ftfuse_serving 1\n", 200},
		{"/metrics", "process_open_fds", 200},
		{"/", "&lt;script&gt;", 200},
		{"/queue/ls", "404", 404},
		{"/status", "404", 404},
		{"/nothing", "404", 404},
	} {
		code, body := get(t, http.DefaultClient, base+tc.path)
		if code != tc.code || !strings.Contains(body, tc.want) {
			t.Errorf("%s: %d, want %d and %q in:\n%s", tc.path, code, tc.code, tc.want, body)
		}
	}
	if code, body := get(t, Client(dir), "http://role/queue/ls"); code != 200 || body != "secret" {
		t.Errorf("the socket answers %d %q", code, body)
	}
	resp, err := http.Post(base+"/metrics", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST is answered %s", resp.Status)
	}
}

func TestNotReadySaysWhy(t *testing.T) {
	var role status.Role
	s := start(t, Options{Dir: t.TempDir(), HTTP: "127.0.0.1:0", Status: func() status.Role { return role }})
	for want, change := range map[string]func(){
		"stopping":  func() { role.Serving = false },
		"disk":      func() { role.Queue.DiskFull = true },
		"max_bytes": func() { role.Queue.Bytes = role.Queue.MaxBytes },
	} {
		role = serving()
		change()
		if code, body := get(t, http.DefaultClient, "http://"+s.Addr().String()+"/readyz"); code != 503 || !strings.Contains(body, want) {
			t.Errorf("%d %q, want 503 and %q", code, body, want)
		}
		if code, _ := get(t, http.DefaultClient, "http://"+s.Addr().String()+"/healthz"); code != 200 {
			t.Errorf("healthz is %d", code)
		}
	}
}

func TestAnAddressInUseIsAReasonNotToStart(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	_, err = Start(Options{Dir: dir, Status: serving, HTTP: l.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()) || !strings.Contains(err.Error(), "http.listen") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(SocketPath(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// Idle clients on the address take places, never more than there are, and a place comes
// free when one goes.
func TestConnectionsToTheAddressAreLimited(t *testing.T) {
	s := start(t, Options{Dir: t.TempDir(), HTTP: "127.0.0.1:0"})
	var conns []net.Conn
	for range maxHTTP {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
		// An answered request shows that the connection was accepted.
		fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	answered := make(chan int, 1)
	client := &http.Client{Transport: &http.Transport{}}
	go func() {
		resp, err := client.Get("http://" + s.Addr().String() + "/healthz")
		if err != nil {
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	select {
	case <-answered:
		t.Fatal("one more than the limit is served")
	case <-time.After(50 * time.Millisecond):
	}
	conns[0].Close()
	if code := <-answered; code != 200 {
		t.Errorf("with a free place it is answered %d", code)
	}
}

func TestEachHangupIsHeard(t *testing.T) {
	// This one keeps a signal that comes early from ending the test.
	early := make(chan os.Signal, 1)
	signal.Notify(early, syscall.SIGHUP)
	defer signal.Stop(early)
	ctx, cancel := context.WithCancel(t.Context())
	heard, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- OnHangup(ctx, func() { heard <- struct{}{} }) }()
	for range 2 {
		for waiting := true; waiting; {
			if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			select {
			case <-heard:
				waiting = false
			case <-time.After(10 * time.Millisecond): // it did not listen yet
			}
		}
	}
	cancel()
	for {
		select {
		case <-heard: // of a signal that came twice
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		}
	}
}
