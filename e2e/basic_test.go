package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/bench/rig"
)

// An operator copies the two example files, changes the folders and addresses, starts
// both roles and appends.
func TestExampleFilesCarryLines(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	addr, err := rig.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	p := &rig.Pair{Bin: bin, Dir: dir}
	watch(t, p)
	adapt := func(name, state string) string {
		text := string(read(t, filepath.Join("..", "testdata", name)))
		for old, now := range map[string]string{
			`"/var/lib/ftfuse"`: fmt.Sprintf("%q", filepath.Join(dir, state)), `"/mnt/ftfuse"`: fmt.Sprintf("%q", p.Point()),
			`"aggregator:7401"`: fmt.Sprintf("%q", addr), `":7401"`: fmt.Sprintf("%q", addr),
			`"/data/ftfuse"`: fmt.Sprintf("%q", dir+"/data"), `"/data/ftfuse-all"`: fmt.Sprintf("%q", dir+"/all"),
		} {
			text = strings.ReplaceAll(text, old, now)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, d := range []string{"mnt", "data", "all"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if p.ReceiveRole, err = rig.Start(bin, "receive", adapt("receive.toml", "b"), nil); err != nil {
		t.Fatal(err)
	}
	if err := p.ReceiveRole.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.MountRole, err = rig.Start(bin, "mount", adapt("mount.toml", "a"), nil); err != nil {
		t.Fatal(err)
	}
	if err := p.MountRole.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	sh(t, `mkdir "$1/nginx"; echo hello >>"$1/app.log"; echo "GET /" >>"$1/nginx/access.log"; echo old >"$1/app.log.1"; echo zip >"$1/app.log.2.gz"; echo last >>"$1/app.log"`, p.Point())
	arrives(t, dir+"/data/web-01/app.log", []byte("hello\nlast\n"))
	arrives(t, dir+"/data/web-01/nginx/access.log", []byte("GET /\n"))
	eventually(t, patience, func() error {
		if all := string(read(t, dir+"/all/nginx.log")); !strings.HasSuffix(all, "]: GET /\n") || !strings.Contains(all, " web-01 nginx/access.log[") {
			return fmt.Errorf("the unified file has %q", all)
		}
		return nil
	})
	stop(t, p)
	for _, copied := range []string{"app.log.1", "app.log.2.gz"} {
		if _, err := os.Stat(dir + "/data/web-01/" + copied); !os.IsNotExist(err) {
			t.Errorf("%s was sent although a rule excludes it (%v)", copied, err)
		}
	}
}

// Attributes of each write come out as the format asks.
func TestFormatNamesHostProcessUserPathAndTime(t *testing.T) {
	p := newPair(t)
	p.Outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\nfile = \"all.log\"\nformat = \"%%H|%%P|%%U|%%G|%%F|%%f|%%T|%%%%|%%L\"\ntime = \"%%Y\"\n", p.OutDir())
	start(t, p)
	pid := strings.TrimSpace(sh(t, `mkdir -p "$1/a/b"; echo $$; echo "one line" >>"$1/a/b/c.log"`, p.Point()))
	var line string
	eventually(t, patience, func() error {
		if line = string(read(t, filepath.Join(p.OutDir(), "all.log"))); !strings.HasSuffix(line, "\n") {
			return fmt.Errorf("the unified file has %q", line)
		}
		return nil
	})
	f := strings.Split(strings.TrimSuffix(line, "\n"), "|")
	want := []string{"web-01", pid, "0", "0", "a/b/c.log", "c.log", "", "%", "one line"}
	if len(f) != len(want) || len(f[6]) != 4 {
		t.Fatalf("line %q, want the form of %q with a year", line, want)
	}
	want[6] = f[6]
	if got := strings.Join(f, "|"); got != strings.Join(want, "|") {
		t.Errorf("line %q, want %q", got, strings.Join(want, "|"))
	}
}

// Stopping in order leaves nothing behind: no mount, no process, exit 0 of both; a start
// after that goes on.
func TestStopAndStartAgain(t *testing.T) {
	p := startPair(t)
	var want []byte
	for i := range 3 {
		line := fmt.Sprintf("start %d\n", i)
		sh(t, `echo "$2" >>"$1"`, p.In("a.log"), strings.TrimSpace(line))
		want = append(want, line...)
		stop(t, p)
		if rig.OnFUSE(p.Point()) {
			t.Fatal("the mount is left after a stop")
		}
		same(t, p.Out("a.log"), want) // the mount drained before it stopped
		start(t, p)
	}
	if got := read(t, p.In("a.log")); string(got) != string(want) {
		t.Errorf("read back after remounts: %q, want %q", got, want)
	}
}

// `ftfuse queue verify` says that the queues of stopped roles are whole.
func TestQueueVerifyAfterAStop(t *testing.T) {
	p := startPair(t)
	sh(t, `seq 100000 >>"$1"`, p.In("a.log"))
	stop(t, p)
	for _, config := range []string{p.MountConfig(), p.ReceiveConfig()} {
		if out, complaint, code := ftfuse(t, "queue", "verify", "-c", config); code != 0 {
			t.Errorf("queue verify -c %s: exit %d\n%s%s", filepath.Base(config), code, out, complaint)
		}
	}
}
