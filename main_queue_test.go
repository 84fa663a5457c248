package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/queue"
)

// stopped runs a receiver once, so that there is a queue, and returns its
// configuration.
func stopped(t *testing.T) (conf, dir string) {
	t.Helper()
	dir = t.TempDir()
	conf = receiverConfig(t, dir, "127.0.0.1:0", "")
	p := start(t, nil, binary, "receive", "-c", conf)
	p.waitFor("ready")
	p.signal(syscall.SIGTERM)
	p.exits(exitOK)
	return conf, filepath.Join(dir, "state", "receive", "queue")
}

// says fails unless the command ends with the code and prints the text.
func says(t *testing.T, code int, text string, args ...string) {
	t.Helper()
	got, stdout, stderr := ftfuse(t, nil, args...)
	if got != code || !strings.Contains(stdout+stderr, text) {
		t.Errorf("ftfuse %s: exit code %d, want %d, and %q in:\n%s%s", strings.Join(args, " "), got, code, text, stdout, stderr)
	}
}

func TestQueueOfAStoppedRole(t *testing.T) {
	conf, dir := stopped(t)
	says(t, 0, "stopped\n", "queue", "ls", "-c", conf)
	says(t, 0, "nothing is queued", "queue", "ls", "-c", conf)
	says(t, 0, `"role":"receive"`, "queue", "ls", "--json", "-c", conf)
	says(t, 0, dir+": whole: ", "queue", "verify", "-c", conf, "--role", "receive")
	says(t, 0, "nothing to repair", "queue", "repair", "-c", conf)
	says(t, 1, "start the role, then import", "queue", "import", "-c", conf, os.DevNull)
}

func TestQueueOfARoleThatNeverRan(t *testing.T) {
	conf := receiverConfig(t, t.TempDir(), "127.0.0.1:0", "")
	says(t, 0, "no queue yet", "queue", "verify", "-c", conf)
	for _, command := range []string{"ls", "cat", "verify", "repair", "export", "import"} {
		says(t, 1, "no queue yet", "queue", command, "-c", conf, "--role", "receive")
	}
}

func TestQueueOfARunningRole(t *testing.T) {
	conf := receiverConfig(t, t.TempDir(), "127.0.0.1:0", "")
	p := start(t, nil, binary, "receive", "-c", conf)
	p.waitFor("ready")
	says(t, 0, "running\n", "queue", "ls", "-c", conf)
	says(t, 0, ": whole: ", "queue", "verify", "-c", conf)
	says(t, 0, "", "queue", "cat", "-c", conf)
	says(t, 1, "no such cursor", "queue", "cat", "-c", conf, "--cursor", "wrong")
	says(t, 0, "exported 0 batches", "queue", "export", "-c", conf)
	says(t, 1, "stop the role first", "queue", "repair", "-c", conf)
	p.signal(syscall.SIGTERM)
	p.exits(exitOK)
}

func TestDamagedQueueIsNamed(t *testing.T) {
	conf, dir := stopped(t)
	segments, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no segments in %s (%v)", dir, err)
	}
	newest := segments[len(segments)-1]
	info, err := os.Stat(newest)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(newest, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	// All pages behind the two that say where the tree begins.
	if _, err := f.WriteAt(make([]byte, min(info.Size(), 1<<20)-2*4096), 2*4096); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	says(t, 1, dir+": damaged: ", "queue", "verify", "-c", conf)
	says(t, 1, "ftfuse queue repair --role receive", "queue", "verify", "-c", conf)
	says(t, 1, "ftfuse queue repair", "queue", "ls", "-c", conf)
	says(t, 1, "ftfuse queue repair", "receive", "-c", conf)
}

func TestRepairNeedsOneRole(t *testing.T) {
	for _, command := range []string{"repair", "export", "import"} {
		says(t, 2, "--role", "queue", command, "-c", file(t, goodConfig))
	}
}

// relayConfig is a relay in dir that sends to a place where nobody listens.
func relayConfig(t *testing.T, dir string) string {
	t.Helper()
	return file(t, fmt.Sprintf(`host = "r"
state_dir = %q
log.format = "json"
shutdown_timeout = "100ms"
[relay]
listen = "127.0.0.1:0"
[[relay.forward]]
name = "next"
primary = ["127.0.0.1:1"]
`, dir))
}

// backlog puts n batches into the queue of the stopped relay, for the cursor of its group.
func backlog(t *testing.T, dir string, n int) {
	t.Helper()
	backlogOf(t, dir, "web-01", 1, n)
}

// backlogOf is backlog of a host, with the numbers from first on in the one lane that there is.
func backlogOf(t *testing.T, dir, host string, first, n int) {
	t.Helper()
	q, err := queue.Open(filepath.Join(dir, "relay", "queue"), queue.Options{Cursors: []string{"forward/next"}, Dedupe: true})
	if err != nil {
		t.Fatal(err)
	}
	b := record.NewBuilder(1 << 20)
	for i := range n {
		b.Reset()
		text := fmt.Sprintf("line %d\x1b[2J\n", i)
		if !b.Add(&record.Attr{Host: host, Path: "logs/a b.log", PID: 42, Time: time.Now().UnixNano(), Flags: record.Recovered}, []byte(text)) {
			t.Fatal("a record does not fit")
		}
		id := batch.ID{Lane: batch.Lane{Origin: batch.Origin{1}, Epoch: batch.Epoch{Counter: 1, Random: 2}}, N: uint64(first + i)}
		s := b.Seal(id, time.Now().UnixNano())
		s.Host, s.Data = host, bytes.Clone(s.Data)
		if _, err := q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{{Batch: s}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestBacklogOfADeadHostMovesToAnother: out of files or of a running role, into files or a
// running role.
func TestBacklogOfADeadHostMovesToAnother(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprint(running), func(t *testing.T) {
			dead, other := t.TempDir(), t.TempDir()
			from, to := relayConfig(t, dead), relayConfig(t, other)
			backlog(t, dead, 5)
			backlog(t, other, 0)
			if running {
				for _, conf := range []string{from, to} {
					p := start(t, nil, binary, "relay", "-c", conf)
					p.waitFor("ready")
					defer p.signal(syscall.SIGKILL)
				}
			}
			says(t, 0, "1-5", "queue", "ls", "-c", from)
			says(t, 0, `"numbers":"1-5"`, "queue", "ls", "--json", "-c", from)
			says(t, 0, "line 4\x1b[2J\n", "queue", "cat", "-c", from)
			says(t, 0, `== web-01 "logs/a b.log" pid 42`, "queue", "cat", "-c", from, "--cursor", "forward/next")
			export := filepath.Join(t.TempDir(), "backlog")
			says(t, 0, "exported 5 batches, 5 records", "queue", "export", "-c", from, "-o", export)
			says(t, 1, "is there already", "queue", "export", "-c", from, "-o", export)
			says(t, 0, "imported 5 batches", "queue", "import", "-c", to, export)
			says(t, 0, "1-5", "queue", "ls", "-c", to)
			says(t, 0, "line 4", "queue", "cat", "-c", to)
			says(t, 0, ": whole: ", "queue", "verify", "-c", to)
			if err := os.Truncate(export, 1200); err != nil {
				t.Fatal(err)
			}
			says(t, 1, "cut short", "queue", "import", "-c", to, export)
			says(t, 1, "not an export", "queue", "import", "-c", to, os.DevNull)
			says(t, 0, "1-5", "queue", "ls", "-c", from) // it stays there
			if left, err := filepath.Glob(export + ".*"); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// TestAnExportIsNamedOnTheDiskBeforeItIsReported: the host that it was made on may be given up
// for it.
func TestAnExportIsNamedOnTheDiskBeforeItIsReported(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace")
	}
	dir, to := t.TempDir(), t.TempDir()
	backlog(t, dir, 2)
	trace := filepath.Join(dir, "trace")
	out, err := exec.Command(strace, "-f", "-y", "-o", trace, "-e", "trace=renameat2,fsync,write",
		binary, "queue", "export", "-c", relayConfig(t, dir), "-o", filepath.Join(to, "backlog")).CombinedOutput()
	if err != nil {
		t.Skipf("strace: %v\n%s", err, out)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	_, behind, _ := strings.Cut(string(text), "renameat2(")
	before, _, said := strings.Cut(behind, "relay: exported")
	if !said || !strings.Contains(before, "fsync(") || !strings.Contains(before, "<"+to+">)") {
		t.Errorf("the directory is not synced between the file's name and the report:\n%s", text)
	}
}

// TestImportIntoAStoppedRelayKeepsALaneToItsHost: with certificates a lane is of one host, as
// the running relay has it.
func TestImportIntoAStoppedRelayKeepsALaneToItsHost(t *testing.T) {
	dead, other := t.TempDir(), t.TempDir()
	backlogOf(t, dead, "db-01", 6, 2)
	backlogOf(t, other, "web-01", 1, 5)
	export := filepath.Join(t.TempDir(), "backlog")
	says(t, 0, "exported 2 batches", "queue", "export", "-c", relayConfig(t, dead), "-o", export)
	certs := filepath.Join(t.TempDir(), "certs")
	says(t, 0, "", "cert", "ca", "--dir", certs)
	says(t, 0, "", "cert", "host", "--dir", certs, "r")
	text, err := os.ReadFile(relayConfig(t, other))
	if err != nil {
		t.Fatal(err)
	}
	tls := fmt.Sprintf("tls = { cert = %q, key = %q, ca = %q }\n", filepath.Join(certs, "r.crt"), filepath.Join(certs, "r.key"), filepath.Join(certs, "ca.crt"))
	to := file(t, tls+string(text))
	says(t, 1, "not taken: batch", "queue", "import", "-c", to, export)
	says(t, 0, "1-5", "queue", "ls", "-c", to)
}

// TestImportThatFillsTheDiskEnds: nobody makes room in a stopped queue.
func TestImportThatFillsTheDiskEnds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small disk needs root")
	}
	small, dead := t.TempDir(), t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=24m"); err != nil {
		t.Skip("no tmpfs: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	q, err := queue.Open(filepath.Join(dead, "relay", "queue"), queue.Options{Cursors: []string{"forward/next"}})
	if err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n <= 40; n++ {
		s := batch.Sealed{ID: batch.ID{Lane: batch.Lane{Origin: batch.Origin{1}}, N: n}, Data: make([]byte, 1<<20)}
		s.CRC = batch.Checksum(s.Data)
		if _, err := q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{{Batch: s}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	backlog(t, small, 0)
	export := filepath.Join(t.TempDir(), "backlog")
	says(t, 0, "exported 40 batches", "queue", "export", "-c", relayConfig(t, dead), "-o", export)
	to := relayConfig(t, small)
	says(t, 1, "the disk is full", "queue", "import", "-c", to, export)
	says(t, 0, ": whole: ", "queue", "verify", "-c", to)
}
