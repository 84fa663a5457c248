package metrics

import (
	"flag"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"ftfuse/internal/status"
	"ftfuse/internal/status/statustest"
)

var update = flag.Bool("update", false, "write the golden files")

// scrape returns the lines about ftfuse.
func scrape(t *testing.T, r status.Role) string {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(func() status.Role { return r }, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("answered %d: %s", w.Code, w.Body)
	}
	var b strings.Builder
	for line := range strings.Lines(w.Body.String()) {
		if strings.Contains(line, "ftfuse_") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// Dashboards and alerts name them.
func TestNamesAndValuesAreStable(t *testing.T) {
	got := scrape(t, statustest.Role())
	const file = "testdata/metrics.txt"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test ./internal/metrics -update writes it); got:\n%s", file, got)
	}
}

func TestNamesFollowTheRules(t *testing.T) {
	sample := regexp.MustCompile(`^(ftfuse_[a-z0-9_]+)(\{(\w+)="[^"]*"\})? [0-9.e+-]+$`)
	kind := map[string]string{}
	for line := range strings.Lines(scrape(t, statustest.Role())) {
		line = strings.TrimSpace(line)
		if f := strings.Fields(line); f[0] == "#" {
			if f[1] == "TYPE" {
				kind[f[2]] = f[3]
			} else if len(f) < 5 {
				t.Errorf("no help: %s", line)
			}
			continue
		}
		m := sample.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("unexpected: %s", line)
			continue
		}
		if label := m[3]; label != "" && label != "peer" && label != "rule" {
			t.Errorf("%s has the label %s", m[1], label)
		}
		if strings.HasSuffix(m[1], "_total") != (kind[m[1]] == "counter") {
			t.Errorf("%s is a %s", m[1], kind[m[1]])
		}
	}
}

// Alerts on losses must not lack their metric before the first one.
func TestSumsOfLossesAreThereFromTheStart(t *testing.T) {
	got := scrape(t, status.Role{})
	for _, name := range []string{"ftfuse_dropped_records_total 0\n", "ftfuse_dropped_elsewhere_bytes_total 0\n", "ftfuse_duplicate_batches_total 0\n"} {
		if !strings.Contains(got, name) {
			t.Errorf("no %q in:\n%s", name, got)
		}
	}
}

// Connections of one host, reasons that are no names and hosts that are no text must not
// make a scrape fail: Prometheus drops all of it then.
func TestAnythingCanBeScraped(t *testing.T) {
	r := statustest.Role()
	r.Peers.Connections = append(r.Peers.Connections, r.Peers.Connections[0])
	r.Peers.Connections[1].Host = "a\"b\\c\n\xff"
	r.Dropped = append(r.Dropped, status.Loss{Reason: "No such-reason!"}, status.Loss{Reason: "no such reason?"})
	r.Forward = append(r.Forward, r.Forward[0])
	r.Counters = append(r.Counters, r.Counters...)
	r.Counters = append(r.Counters, status.Counter{Name: "serving", Gauge: true, Rule: "other label", Value: 9})
	got := scrape(t, r)
	for _, want := range []string{
		`ftfuse_peer_connections{peer="web-01"} 2`, `ftfuse_dropped_no_such_reason__batches_total 0`,
		`ftfuse_destination_sent_batches_total{peer="colo/10.0.0.1:7401"} 220`, "ftfuse_serving 1\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "ftfuse_dropped_No") {
		t.Errorf("a name has capital letters:\n%s", got)
	}
}
