package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/status"
)

// statusOf runs `ftfuse status --json` and returns its exit code and what each role said.
func statusOf(t *testing.T, conf string) (code int, roles []status.Role) {
	t.Helper()
	code, stdout, stderr := ftfuse(t, nil, "status", "--json", "-c", conf)
	var doc struct{ Roles []status.Role }
	if err := json.Unmarshal([]byte(stdout), &doc); err != nil {
		t.Fatalf("%v in:\n%s%s", err, stdout, stderr)
	}
	return code, doc.Roles
}

func TestStatusOfARunningRole(t *testing.T) {
	conf := receiverConfig(t, t.TempDir(), "127.0.0.1:0", `http = { listen = "127.0.0.1:0" }`)
	p := start(t, nil, binary, "receive", "-c", conf)
	web := fmt.Sprint("http://", p.waitFor("http")["listen"])
	addr := p.waitFor("ready")["listen"]
	code, roles := statusOf(t, conf)
	if code != 0 || len(roles) != 1 {
		t.Fatalf("exit code %d, %+v", code, roles)
	}
	r := roles[0]
	if r.Role != "receive" || r.Host != "h" || r.Listen != addr || !r.Serving || r.PID != p.cmd.Process.Pid || r.Version != "v1.2.3-test" {
		t.Errorf("got %+v", r)
	}
	code, stdout, stderr := ftfuse(t, nil, "status", "-c", conf)
	if code != 0 || !strings.Contains(stdout, fmt.Sprintf("receive: %s, serving", addr)) {
		t.Errorf("exit code %d:\n%s%s", code, stdout, stderr)
	}
	for path, want := range map[string]string{"/readyz": "ready", "/metrics": "\nftfuse_serving 1\n", "/": "serving"} {
		resp, err := http.Get(web + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s, %v, want %q in:\n%s", path, resp.Status, err, want, body)
		}
	}
	p.signal(syscall.SIGTERM)
	p.exits(exitOK)
	code, stdout, stderr = ftfuse(t, nil, "status", "-c", conf)
	if code != exitRuntime || !strings.Contains(stderr, "receive: ") || !strings.Contains(stderr, "does not answer") {
		t.Errorf("of a stopped role: exit code %d:\n%s%s", code, stdout, stderr)
	}
}

// A relay whose destination is away serves all the same, and says so.
func TestStatusOfARelay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	away := l.Addr().String()
	l.Close()
	conf := file(t, fmt.Sprintf("host = \"r\"\nstate_dir = %q\nlog.format = \"json\"\n[relay]\nlisten = \"127.0.0.1:0\"\n[[relay.forward]]\nname = \"colo\"\nprimary = [%q]\n", t.TempDir(), away))
	p := start(t, nil, binary, "relay", "-c", conf)
	addr := p.waitFor("ready")["listen"]
	tried := func(roles []status.Role) bool { // the first moment has no destinations
		return len(roles) > 0 && slices.ContainsFunc(roles[0].Forward, func(g status.Group) bool {
			return slices.ContainsFunc(g.Destinations, func(d status.Destination) bool { return d.Failures > 0 })
		})
	}
	code, roles := statusOf(t, conf)
	for end := time.Now().Add(20 * time.Second); code == 0 && !tried(roles) && time.Now().Before(end); {
		code, roles = statusOf(t, conf)
	}
	if code != 0 || len(roles) != 1 || roles[0].Role != "relay" || roles[0].Listen != addr || !roles[0].Serving {
		t.Fatalf("exit code %d, %+v", code, roles)
	}
	g := roles[0].Forward
	if len(g) != 1 || g[0].Name != "colo" || len(g[0].Destinations) != 1 || g[0].Destinations[0].Address != away {
		t.Fatalf("the groups are %+v", g)
	}
	if d := g[0].Destinations[0]; d.State == status.StateConnected || d.Failures == 0 || !strings.Contains(d.LastError, "refused") {
		t.Errorf("the destination is %+v", d)
	}
	p.signal(syscall.SIGTERM)
	p.exits(exitOK)
}

// What a kill -9 leaves must not keep the next start from answering.
func TestStatusAfterAKill(t *testing.T) {
	conf := receiverConfig(t, t.TempDir(), "127.0.0.1:0", "")
	for range 2 {
		p := start(t, nil, binary, "receive", "-c", conf)
		p.waitFor("ready")
		if code, roles := statusOf(t, conf); code != 0 || roles[0].PID != p.cmd.Process.Pid {
			t.Errorf("exit code %d, %+v", code, roles)
		}
		p.signal(syscall.SIGKILL)
		p.exits(-1)
	}
	if code, _ := statusOf(t, conf); code != exitRuntime {
		t.Errorf("of a killed role: exit code %d", code)
	}
}

// One that runs is shown beside one that does not.
func TestStatusOfSeveralRoles(t *testing.T) {
	dir := t.TempDir()
	conf := receiverConfig(t, dir, "127.0.0.1:0", "[mount]\npoint = \""+dir+"/m\"\n[[mount.forward]]\nprimary = [\"127.0.0.1:9\"]\n")
	p := start(t, nil, binary, "receive", "-c", conf)
	p.waitFor("ready")
	code, stdout, stderr := ftfuse(t, nil, "status", "-c", conf)
	if code != exitRuntime || !strings.Contains(stdout, "receive: ") || !strings.Contains(stderr, "mount: "+dir) || strings.Contains(stderr, "receive: ") {
		t.Errorf("exit code %d:\n%s%s", code, stdout, stderr)
	}
	if code, stdout, stderr := ftfuse(t, nil, "status", "--role", "receive", "-c", conf); code != 0 {
		t.Errorf("of that role alone: exit code %d:\n%s%s", code, stdout, stderr)
	}
	p.signal(syscall.SIGTERM)
	p.exits(exitOK)
}

func TestABadCertificateKeepsARoleFromStarting(t *testing.T) {
	conf := receiverConfig(t, t.TempDir(), "127.0.0.1:0", "[tls]\ncert = \"/not/there.pem\"\nkey = \"/k\"\nca = \"/c\"")
	code, _, stderr := ftfuse(t, nil, "receive", "-c", conf)
	if code != exitConfig || !strings.HasPrefix(stderr, conf+":4: ") || !strings.Contains(stderr, "/not/there.pem") {
		t.Errorf("exit code %d:\n%s", code, stderr)
	}
}
