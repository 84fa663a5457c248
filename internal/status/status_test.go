package status_test

import (
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"ftfuse/internal/status"
	"ftfuse/internal/status/statustest"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, file, got string) {
	t.Helper()
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
		t.Errorf("%s differs (go test ./internal/status -update writes it); got:\n%s", file, got)
	}
}

func text(t *testing.T, r status.Role) string {
	t.Helper()
	var b strings.Builder
	if err := status.Text(&b, &r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTheExampleSetsEveryField(t *testing.T) {
	if names := statustest.Unset(statustest.Role()); len(names) > 0 {
		t.Errorf("statustest.Role does not set %v", names)
	}
}

// Scripts read the names; people the text.
func TestWhatIsSaidIsStable(t *testing.T) {
	r := statustest.Role()
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/role.json", string(data)+"\n")
	golden(t, "testdata/role.txt", text(t, r))
	var again status.Role
	if err := json.Unmarshal(data, &again); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again, r) {
		t.Errorf("read back it is %+v", again)
	}
}

// A peer calls itself what it likes, and errors quote what came from the network.
func TestPeersCannotForgeLinesOrDriveTheTerminal(t *testing.T) {
	r := statustest.Role()
	lines := strings.Count(text(t, r), "\n")
	evil := "a\nb\tc\x1b[2Jd\x07\u202ee\xff"
	r.Peers.Connections[0].Host = evil
	r.Forward[0].Destinations[0].LastError = evil
	r.Forward[0].Destinations[0].Address = evil
	r.Trouble[0] = evil
	got := text(t, r)
	if n := strings.Count(got, "\n"); n != lines {
		t.Errorf("%d lines, want %d:\n%s", n, lines, got)
	}
	if strings.ContainsAny(got, "\x1b\x07\t\u202e") || !utf8.ValidString(got) {
		t.Errorf("control characters in %q", got)
	}
	if !strings.Contains(got, "a?b?c?[2Jd??e") {
		t.Errorf("the name is not shown as it is:\n%s", got)
	}
}

func TestManyPeersAreCountedNotListed(t *testing.T) {
	r := statustest.Role()
	for range 100 {
		r.Peers.Connections = append(r.Peers.Connections, r.Peers.Connections[0])
	}
	got := text(t, r)
	if !strings.Contains(got, "102 connected") || !strings.Contains(got, "and 82 more") || strings.Count(got, "web-0") != 20 {
		t.Errorf("got:\n%s", got)
	}
}

func TestARoleThatSaysNothingIsShown(t *testing.T) {
	got := text(t, status.Role{Role: "mount"})
	if !strings.Contains(got, "not ready") {
		t.Errorf("got:\n%s", got)
	}
}
