package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ftfuse/bench/rig"
)

// twin runs a script twice, with $1 a folder of the mount and then one of the real file
// system, and wants each file of the second byte for byte at the aggregator.
func twin(t *testing.T, p *rig.Pair, script string) {
	t.Helper()
	sub := strings.NewReplacer(" ", "_", "/", "_").Replace(t.Name())
	on, off := p.In(sub), filepath.Join(p.Dir, "twin", sub)
	must(t, os.Mkdir(on, 0o755))
	must(t, os.MkdirAll(off, 0o755))
	sh(t, script, on)
	sh(t, script, off)
	files := 0
	err := filepath.Walk(off, func(path string, st os.FileInfo, err error) error {
		if err != nil || st.IsDir() {
			return err
		}
		files++
		name, err := filepath.Rel(off, path)
		if err != nil {
			return err
		}
		arrives(t, p.Out(filepath.Join(sub, name)), read(t, path))
		if mode := modeOf(t, filepath.Join(on, name)); mode != st.Mode() {
			t.Errorf("%s has mode %v on the mount, %v on ext4", name, mode, st.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Fatal("the script wrote no file")
	}
}

func modeOf(t *testing.T, path string) os.FileMode {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode()
}

// Each program writes the same to the mount as to ext4; what arrives is what ext4 has.
func TestProgramsWriteAsOnExt4(t *testing.T) {
	eachCapture(t, programsWriteAsOnExt4)
}

func programsWriteAsOnExt4(t *testing.T, c capture, p *rig.Pair) {
	c.start(t, p)
	for name, script := range map[string]string{
		"shell":    `cd "$1"; for i in $(seq 300); do echo "line $i" >>shell.log; done; printf 'no end' >>shell.log; printf ' here\n' >>shell.log`,
		"loop":     `cd "$1"; for i in $(seq 2000); do echo "line $i of one open file"; done >>loop.log`,
		"truncate": `cd "$1"; seq 1000 >over.log`,
		"cp":       `cd "$1"; seq 50000 >"/tmp/$$.src"; cp "/tmp/$$.src" cp.log; rm "/tmp/$$.src"; chmod 640 cp.log`,
		"dd":       `cd "$1"; seq 200000 | dd of=dd.log bs=4k status=none; seq 7 | dd of=dd.log oflag=append conv=notrunc status=none`,
		"dd big":   `cd "$1"; seq -w 2000000 | head -c 8000000 | dd of=ddbig.log bs=1M iflag=fullblock status=none`,
		"tee":      `cd "$1"; seq 30000 | tee tee1.log tee2.log >/dev/null; seq 10 | tee -a tee1.log >/dev/null`,
		"folders":  `cd "$1"; mkdir -p a/b/c; echo deep >>a/b/c/d.log; echo "spaces and ümläuts" >>"a/b/na me é.log"`,
		"no line":  `cd "$1"; printf 'one line without an end' >>noend.log`,
		"empty":    `cd "$1"; echo x >>notempty.log; : >>empty.log`,
		"awk":      `cd "$1"; awk 'BEGIN { for (i = 0; i < 20000; i++) print "awk", i >> "awk.log" }'`,
		"sed":      `cd "$1"; seq 20000 | sed -u 's/^/sed /' >>sed.log`,
	} {
		t.Run(name, func(t *testing.T) { twin(t, p, script) })
	}
	stop(t, p)
}

// Appending in one shell and in many at once keeps every line whole.
func TestShellsAppendingAtOnceKeepLinesWhole(t *testing.T) {
	eachCapture(t, shellsAppendingAtOnceKeepLinesWhole)
}

func shellsAppendingAtOnceKeepLinesWhole(t *testing.T, c capture, p *rig.Pair) {
	c.start(t, p)
	sh(t, `for w in a b c d; do (for i in $(seq 500); do echo "$w $i"; done >>"$1") & done; wait`, p.In("shared.log"))
	eventually(t, patience, func() error {
		if n := bytes.Count(read(t, p.Out("shared.log")), []byte("\n")); n < 2000 {
			return fmt.Errorf("%d lines of 2000 arrived", n)
		}
		return nil
	})
	next := map[string]int{"a": 1, "b": 1, "c": 1, "d": 1}
	for line := range strings.Lines(string(read(t, p.Out("shared.log")))) {
		w, n, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if n != fmt.Sprint(next[w]) {
			t.Fatalf("line %q, want number %d of writer %q", line, next[w], w)
		}
		next[w]++
	}
}

// Python's RotatingFileHandler renames the file under its own feet again and again.
func TestPythonRotatingFileHandler(t *testing.T) {
	need(t, "python3")
	eachCapture(t, pythonRotatingFileHandler)
}

func pythonRotatingFileHandler(t *testing.T, c capture, p *rig.Pair) {
	p.Rules = "[[mount.rule]]\npath = \"**/*.[0-9]*\"\ntransfer = false\n"
	c.start(t, p)
	sh(t, `python3 - "$1" <<'END'
import logging, logging.handlers, sys
log = logging.getLogger("app")
log.addHandler(logging.handlers.RotatingFileHandler(sys.argv[1], maxBytes=20000, backupCount=3))
for n in range(5000):
    log.warning("rotating line %06d", n)
END`, p.In("app.log"))
	var want bytes.Buffer
	for n := range 5000 {
		fmt.Fprintf(&want, "rotating line %06d\n", n)
	}
	arrives(t, p.Out("app.log"), want.Bytes())
	kept := sh(t, `ls "$1"`, p.Point())
	if kept != "app.log\napp.log.1\napp.log.2\napp.log.3\n" {
		t.Errorf("on the mount there is %q, want what the handler leaves on ext4", kept)
	}
	stop(t, p)
	same(t, p.Out("app.log"), want.Bytes())
}

// logrotate both ways while a program writes: rename and create, and copytruncate.
func TestLogrotate(t *testing.T) {
	need(t, "logrotate")
	for _, way := range []string{"create", "copytruncate"} {
		t.Run(way, func(t *testing.T) {
			p := newPair(t)
			p.Rules = "[[mount.rule]]\npath = \"**/*.[0-9]*\"\ntransfer = false\n"
			start(t, p)
			config := filepath.Join(p.Dir, "logrotate.conf")
			text := fmt.Sprintf("su root root\n%q {\n rotate 3\n %s\n missingok\n}\n", p.In("app.log"), way)
			if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			var want bytes.Buffer
			for round := range 5 {
				sh(t, `for i in $(seq 200); do echo "round $2 line $i" >>"$1"; done`, p.In("app.log"), fmt.Sprint(round))
				for i := 1; i <= 200; i++ {
					fmt.Fprintf(&want, "round %d line %d\n", round, i)
				}
				out, err := exec.CommandContext(t.Context(), "logrotate", "-f", "-s", filepath.Join(p.Dir, "state"), config).CombinedOutput()
				if err != nil {
					t.Fatalf("logrotate: %v\n%s", err, out)
				}
			}
			arrives(t, p.Out("app.log"), want.Bytes())
			if st, err := os.Stat(p.In("app.log.1")); err != nil || (way == "create" && st.Size() == 0) {
				t.Errorf("the rotated file: %v, %v", st, err)
			}
			stop(t, p)
			same(t, p.Out("app.log"), want.Bytes())
		})
	}
}

// copytruncate while a program holds the file open with O_APPEND and never stops. What
// comes between logrotate's copy and its truncation is lost to the copy on any file
// system; here the lines have been taken, and all of them arrive.
func TestCopytruncateUnderAWriterThatNeverStops(t *testing.T) {
	eachCapture(t, copytruncateUnderAWriterThatNeverStops)
}

func copytruncateUnderAWriterThatNeverStops(t *testing.T, c capture, p *rig.Pair) {
	p.Rules = "[[mount.rule]]\npath = \"**/*.[0-9]*\"\ntransfer = false\n"
	c.start(t, p)
	n := 40_000
	// The program may be slow to begin: the file is there before it is copied.
	sh(t, `: >>"$1"
		(seq -f 'line %06.0f' "$2" | while read -r l; do echo "$l"; done >>"$1") & w=$!
		for i in 1 2 3 4 5 6 7 8; do cp "$1" "$1.1"; : >"$1"; done; wait $w`, p.In("app.log"), fmt.Sprint(n))
	var want bytes.Buffer
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&want, "line %06d\n", i)
	}
	arrives(t, p.Out("app.log"), want.Bytes())
	stop(t, p)
	same(t, p.Out("app.log"), want.Bytes())
}

// nginx writes its access log to the mount, one line for each request, and reopens it
// after a rename as logrotate's postrotate would ask.
func TestNginxAccessLog(t *testing.T) {
	need(t, "nginx")
	eachCapture(t, nginxAccessLog)
}

func nginxAccessLog(t *testing.T, c capture, p *rig.Pair) {
	c.start(t, p)
	addr, err := rig.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(p.Dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off;
worker_processes 2;
user root;
pid %s/nginx.pid;
error_log %s;
events { worker_connections 64; }
http {
	log_format plain '$request_uri $status';
	access_log %s plain;
	server { listen %s; location / { return 204; } }
}
`, p.Dir, p.In("nginx/error.log"), p.In("nginx/access.log"), addr)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(p.In("nginx"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	nginx := exec.CommandContext(ctx, "nginx", "-p", p.Dir, "-e", filepath.Join(p.Dir, "start.log"), "-c", config)
	if err := nginx.Start(); err != nil {
		t.Fatal(err)
	}
	nginx.Cancel = func() error { return nginx.Process.Signal(os.Interrupt) }
	t.Cleanup(func() { cancel(); _ = nginx.Wait() })
	eventually(t, patience, func() error {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err
	})
	var want bytes.Buffer
	get := func(from, to int) {
		for n := from; n < to; n++ {
			r, err := http.Get(fmt.Sprintf("http://%s/request/%d", addr, n))
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			fmt.Fprintf(&want, "/request/%d 204\n", n)
		}
	}
	get(0, 1000)
	arrives(t, p.Out("nginx/access.log"), want.Bytes())
	if err := os.Rename(p.In("nginx/access.log"), p.In("nginx/access.log.1")); err != nil {
		t.Fatal(err)
	}
	get(1000, 1100) // still into the renamed file: a handle keeps the path it was opened with
	sh(t, `kill -USR1 $(cat "$1/nginx.pid")`, p.Dir)
	eventually(t, patience, func() error {
		_, err := os.Stat(p.In("nginx/access.log"))
		return err
	})
	get(1100, 2000)
	eventually(t, patience, func() error {
		got := bytes.Count(read(t, p.Out("nginx/access.log")), []byte("\n"))
		if got < 2000 {
			return fmt.Errorf("%d of 2000 requests arrived", got)
		}
		return nil
	})
	// Two workers reopen one after the other: across that moment only each line counts.
	seen := map[string]int{}
	for line := range strings.Lines(string(read(t, p.Out("nginx/access.log")))) {
		seen[line]++
	}
	for line := range strings.Lines(want.String()) {
		if seen[line] != 1 {
			t.Errorf("%q arrived %d times, want once", line, seen[line])
		}
	}
}

// tail -f on the mount sees lines as they are written, and grep finds the newest.
func TestTailFollowsOnTheMount(t *testing.T) {
	eachCapture(t, tailFollowsOnTheMount)
}

func tailFollowsOnTheMount(t *testing.T, c capture, p *rig.Pair) {
	c.start(t, p)
	sh(t, `echo first >>"$1"`, p.In("app.log"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tail := exec.CommandContext(ctx, "tail", "-n", "+1", "-f", p.In("app.log"))
	out, err := tail.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tail.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = tail.Wait() }()
	buf := make([]byte, 64)
	for _, line := range []string{"first\n", "second\n", "third\n"} {
		if line != "first\n" {
			sh(t, `echo "$2" >>"$1"`, p.In("app.log"), strings.TrimSpace(line))
		}
		n, err := out.Read(buf)
		if err != nil || string(buf[:n]) != line {
			t.Fatalf("tail -f shows %q (%v), want %q", buf[:n], err, line)
		}
	}
	if got := sh(t, `grep -c d "$1"`, p.In("app.log")); got != "2\n" {
		t.Errorf("grep counts %q lines with a d, want 2", got)
	}
}
