package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftfuse/bench/rig"
)

// send runs `ftfuse send` for the source of p, and returns what it says.
func send(t *testing.T, p *rig.Pair, args ...string) string {
	t.Helper()
	out, complaints, code := ftfuse(t, append([]string{"send", "-c", p.MountConfig()}, args...)...)
	if code != 0 {
		t.Fatalf("ftfuse send %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, complaints)
	}
	return out
}

// local writes a file that is not below the mount point.
func local(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, data, 0o644))
	return path
}

func TestSentFilesArriveOnce(t *testing.T) {
	p := newPair(t)
	p.Rules = "[[mount.rule]]\npath = \"private/**\"\ntransfer = false\n"
	start(t, p)
	one := append(offLines("one", 0, 50_000), "no end"...)
	path := local(t, "one.log", one)
	if got, want := send(t, p, "--as", "sent/app.log", path), fmt.Sprintf("%s: %d bytes are in the queue as sent/app.log\n", path, len(one)); got != want {
		t.Errorf("send says %q, want %q", got, want)
	}
	arrives(t, p.Out("sent/app.log"), one)
	if got := send(t, p, "--as", "sent/app.log", path); !strings.Contains(got, ": 0 bytes") {
		t.Errorf("sent again: %q", got)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString(" of it\nmore\n")
	must(t, err)
	must(t, f.Close())
	one = append(one, " of it\nmore\n"...)
	if got := send(t, p, "--as", "sent/app.log", path); !strings.Contains(got, ": 12 bytes") || !strings.Contains(got, "before") {
		t.Errorf("sent when it had grown: %q", got)
	}
	arrives(t, p.Out("sent/app.log"), one)
	a, b := local(t, "a", []byte("a\n")), local(t, "b", []byte("b\n"))
	send(t, p, "--as", "both.log", a, b)
	send(t, p, "--as", "each/", a, b)
	send(t, p, "--as", "both.log", "--again", b)
	arrives(t, p.Out("both.log"), []byte("a\nb\nb\n"))
	arrives(t, p.Out("each/b"), []byte("b\n"))
	for _, bad := range []string{"private/x", "../up", "/abs", "a//b", "."} {
		if _, complaints, code := ftfuse(t, "send", "-c", p.MountConfig(), "--as", bad, a); code != 1 || !strings.Contains(complaints, bad) {
			t.Errorf("--as %s: exit code %d, %s", bad, code, complaints)
		}
	}
	must(t, os.WriteFile(b, []byte("anew\n"), 0o644)) // in the same inode
	send(t, p, "--as", "both.log", b)
	arrives(t, p.Out("both.log"), []byte("a\nb\nb\nanew\n"))
	stop(t, p)
	same(t, p.Out("sent/app.log"), one)
	same(t, p.Out("each/a"), []byte("a\n"))
	same(t, p.Out("both.log"), []byte("a\nb\nb\nanew\n"))
}

// While no mount runs, send writes to the queue itself; a holder without a worker keeps it out.
func TestSendWhileNoMountRuns(t *testing.T) {
	p := newPair(t)
	must(t, p.WriteConfigs())
	data := offLines("one", 0, 20_000)
	path := local(t, "one.log", data)
	send(t, p, "--as", "app.log", path)
	if got := send(t, p, "--as", "app.log", path); !strings.Contains(got, ": 0 bytes") {
		t.Errorf("sent again: %q", got)
	}
	sh(t, `seq 5 | "$1" send -q -c "$2" --as seq.log`, bin, p.MountConfig())
	start(t, p)
	arrives(t, p.Out("app.log"), data)
	arrives(t, p.Out("seq.log"), []byte("1\n2\n3\n4\n5\n"))
	if got := send(t, p, "--as", "app.log", path); !strings.Contains(got, ": 0 bytes") {
		t.Errorf("sent again to the mount: %q", got)
	}
	stop(t, p)
	same(t, p.Out("app.log"), data)
	same(t, p.Out("seq.log"), []byte("1\n2\n3\n4\n5\n"))
}

// Without room in the queue what runs alone gives up, and goes on there when there is room.
func TestSendIntoAFullQueueGoesOnLater(t *testing.T) {
	p := newPair(t)
	p.MountTop = "[mount.queue]\nmax_bytes = \"16MiB\""
	must(t, p.WriteConfigs())
	data := offLines("one", 0, 600_000)
	path := local(t, "one.log", data)
	_, complaints, code := ftfuse(t, "send", "-c", p.MountConfig(), "--as", "app.log", path)
	if code != 1 || !strings.Contains(complaints, "nearly full") {
		t.Fatalf("exit code %d: %s", code, complaints)
	}
	start(t, p)
	if got := send(t, p, "--as", "app.log", path); !strings.Contains(got, "before") {
		t.Errorf("went on: %q", got)
	}
	arrives(t, p.Out("app.log"), data)
	stop(t, p)
	same(t, p.Out("app.log"), data)
}

// Who sends, or who takes, is killed at each step; the same command goes on.
func TestSendIsExactlyOnceAcrossAKillAtEachStep(t *testing.T) {
	data := append(offLines("one", 0, 150_000), "no end"...)
	for _, step := range []string{"capture/seal", "queue/commit-before", "queue/commit-after", "capture/committed", "capture/fed"} {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s,mount %v", step, running), func(t *testing.T) {
				p := newPair(t)
				path := local(t, "one.log", data)
				startReceive(t, p)
				kill := "FTFUSE_FAILPOINTS=" + step + "=kill@4"
				cmd := exec.CommandContext(t.Context(), bin, "send", "-c", p.MountConfig(), "--as", "app.log", path)
				cmd.Env = append(os.Environ(), kill)
				if running {
					_ = p.StartMount(t.Context(), kill) // the holder starts another worker
					cmd.Env = os.Environ()
				} else {
					must(t, p.WriteConfigs())
				}
				out, err := cmd.CombinedOutput()
				if running && err != nil {
					t.Fatalf("send did not outlive the worker: %v\n%s", err, out)
				}
				if !running {
					if err == nil {
						t.Fatalf("not killed\n%s", out)
					}
					send(t, p, "--as", "app.log", path)
					startMount(t, p)
				}
				arrives(t, p.Out("app.log"), data)
				stop(t, p)
				same(t, p.Out("app.log"), data)
			})
		}
	}
}

// A stream goes through kills of the mount, worker and holder; one with a name goes on after
// a kill of its sender, too.
func TestASentStreamOutlivesKills(t *testing.T) {
	p := startPair(t)
	data := offLines("stream", 0, 400_000)
	run := func(args ...string) (io.WriteCloser, *exec.Cmd, *bytes.Buffer) {
		cmd := exec.CommandContext(t.Context(), bin, append([]string{"send", "-c", p.MountConfig()}, args...)...)
		in, err := cmd.StdinPipe()
		must(t, err)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		must(t, cmd.Start())
		return in, cmd, &out
	}
	in, cmd, out := run("--as", "stream.log")
	for at, i := 0, 0; at < len(data); i++ {
		n := min(len(data)-at, 1+rand.IntN(5<<20))
		_, err := in.Write(data[at : at+n])
		must(t, err)
		at += n
		ready := p.MountRole.Readies()
		if i%2 == 0 {
			must(t, p.MountRole.KillWorker())
			must(t, p.MountRole.ReadyAgain(t.Context(), ready+1))
		} else {
			must(t, p.MountRole.Kill())
			startMount(t, p)
		}
	}
	must(t, in.Close())
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	arrives(t, p.Out("stream.log"), data)
	for range 3 {
		in, cmd, _ := run("--as", "named.log", "--id", "backup")
		_, _ = in.Write(data[:1<<20+rand.IntN(3<<20)])
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
	in, cmd, out = run("--as", "named.log", "--id", "backup")
	_, err := in.Write(data)
	must(t, err)
	must(t, in.Close())
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	in, cmd, out = run("--as", "named.log", "--id", "backup")
	_, _ = in.Write([]byte("something else\n"))
	must(t, in.Close())
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), "another stream") {
		t.Errorf("another stream of that name: %v\n%s", err, out)
	}
	arrives(t, p.Out("named.log"), data)
	stop(t, p)
	same(t, p.Out("stream.log"), data)
	same(t, p.Out("named.log"), data)
}

func TestSendShowsABarOnATerminal(t *testing.T) {
	need(t, "script")
	p := startPair(t)
	path := local(t, "one.log", offLines("one", 0, 10_000))
	out := sh(t, `script -qec "$1 send -c $2 --as app.log $3" /dev/null </dev/null`, bin, p.MountConfig(), path)
	if !strings.Contains(out, "[========================] 100 %") || !strings.Contains(out, "bytes are in the queue") {
		t.Errorf("on a terminal: %q", out)
	}
	if out := sh(t, `"$1" send -c "$2" --as app.log "$3" 2>&1`, bin, p.MountConfig(), path); strings.Contains(out, "%") {
		t.Errorf("without a terminal: %q", out)
	}
	stop(t, p)
}

// A mount did not start while a stream was open that had begun to send before it: the queue
// was the sender's until the stream's end.
func TestAMountStartsWhileAStreamIsSent(t *testing.T) {
	for _, holder := range []string{"30s", "0s"} {
		t.Run("holder_timeout "+holder, func(t *testing.T) {
			p := newPair(t)
			p.Mount = fmt.Sprintf("holder_timeout = %q\n", holder)
			must(t, p.WriteConfigs())
			startReceive(t, p)
			data := offLines("stream", 0, 30_000)
			cmd := exec.CommandContext(t.Context(), bin, "send", "-c", p.MountConfig(), "--as", "stream.log")
			in, err := cmd.StdinPipe()
			must(t, err)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			must(t, cmd.Start())
			_, err = in.Write(data[:len(data)/3])
			must(t, err)
			eventually(t, 20*time.Second, func() error { // it has the queue
				_, err := os.Stat(filepath.Join(p.MountState, "mount", "sender.sock"))
				return err
			})
			startMount(t, p)
			_, err = in.Write(data[len(data)/3:])
			must(t, err)
			must(t, in.Close())
			if err := cmd.Wait(); err != nil {
				t.Fatalf("%v\n%s", err, &out)
			}
			arrives(t, p.Out("stream.log"), data)
			stop(t, p)
			same(t, p.Out("stream.log"), data)
		})
	}
}
