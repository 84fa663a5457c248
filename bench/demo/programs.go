package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ftfuse/bench/rig"
)

// program is a real program that appends numbered lines: the last word of each counts
// from 1.
type program struct {
	file  string // below the mount point
	lines int
	what  string // a line of sh; $1 is the file
	needs string // a command that must be there, "" for none

	cmd *exec.Cmd
	out bytes.Buffer
}

const pythonWriter = `python3 -c '
import logging, sys
log = logging.getLogger("service")
log.addHandler(logging.FileHandler(sys.argv[1]))
log.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
for n in range(1, 3001): log.warning("request %d", n)
' "$1"`

// shown is the command as the demo prints it.
func (p *program) shown() string {
	if p.needs == "python3" {
		return `python3 -c 'import logging; … log.warning("request %d", n)' "$1"`
	}
	return p.what
}

func (p *program) start(path string) error {
	p.cmd = exec.Command("sh", "-c", p.what, "sh", path)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start the writer of %s: %w", p.file, err)
	}
	return nil
}

// wait waits for the program's end; any complaint of it is an error.
func (p *program) wait() error {
	if err := p.cmd.Wait(); err != nil || p.out.Len() > 0 {
		return fmt.Errorf("the writer of %s failed (%w): %s", p.file, err, p.out.String())
	}
	return nil
}

func (p *program) kill() {
	if p.cmd != nil && p.cmd.ProcessState == nil {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		_ = p.cmd.Wait() // killed: its status says nothing new
	}
}

// waitLine waits for the first line of path that contains text.
func (d *demo) waitLine(path, text string) (string, error) {
	ctx, cancel := context.WithTimeout(d.ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		line, err := findLine(path, text)
		if line != "" || err != nil {
			return line, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("wait for a line with %q in %s: %w", text, path, ctx.Err())
		}
	}
}

// findLine returns the first whole line of path that contains text, "" for none.
func findLine(path, text string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for a line: %w", err)
	}
	defer f.Close()
	for r := bufio.NewReader(f); ; {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("look for a line: %w", err)
		}
		if strings.Contains(line, text) {
			return strings.TrimSuffix(line, "\n"), nil
		}
	}
}

// bulkMB is how much the demo moves to show a rate.
const bulkMB = 200

// bulk shows a rate: many lines through a plain shell pipe.
func (d *demo) bulk() error {
	d.head("How fast? %d MB of lines from yes | head, appended by cat", bulkMB)
	const line = "2026-01-01T00:00:00 INFO request served in 12 ms, 200 OK, 5120 bytes sent, user=alice id=77aa\n"
	count := bulkMB * 1_000_000 / len(line)
	p := &program{file: "bulk.log", lines: count, what: fmt.Sprintf(`yes %q | head -n %d | cat >>"$1"`, strings.TrimSuffix(line, "\n"), count)}
	began := time.Now()
	if err := p.start(d.pair.In(p.file)); err != nil {
		return err
	}
	defer p.kill()
	if err := p.wait(); err != nil {
		return err
	}
	wrote := time.Since(began)
	if _, err := rig.WaitSize(d.ctx, d.pair.Out(p.file), int64(count*len(line)), time.Millisecond, 30*time.Second); err != nil {
		return err
	}
	all := time.Since(began)
	d.say("   The program had written after %.2f s; %d lines stood in the aggregator's file,\n   durably queued on both sides, after %.2f s: %.0f MB/s, %.0f lines/s.",
		wrote.Seconds(), count, all.Seconds(), float64(count*len(line))/1e6/all.Seconds(), float64(count)/all.Seconds())
	same, err := onlyLine(d.pair.Out(p.file), line, count)
	if err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("%w: %s is not %d times the line that was written", ErrProof, d.pair.Out(p.file), count)
	}
	return nil
}

// onlyLine reports whether the file is line, count times, and nothing else.
func onlyLine(path, line string, count int) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, fmt.Errorf("check the bulk lines: %w", err)
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	buf := make([]byte, len(line))
	for range count {
		if _, err := io.ReadFull(r, buf); err != nil || string(buf) != line {
			return false, nil // too short: a failed proof, not a failed check
		}
	}
	_, err = r.ReadByte()
	return errors.Is(err, io.EOF), nil
}

// proof waits for the programs and counts their lines in the aggregator's files.
func (d *demo) proof() error {
	d.head("The proof: every program numbered its lines; count them at the aggregator")
	for _, p := range d.writers {
		if err := p.wait(); err != nil {
			return err
		}
	}
	failed := false
	for _, p := range d.writers {
		if _, err := rig.WaitSize(d.ctx, d.pair.Out(p.file), sizeOf(d.pair.In(p.file)), 5*time.Millisecond, 20*time.Second); err != nil {
			return err
		}
		c, err := count(d.pair.Out(p.file), p.lines)
		if err != nil {
			return err
		}
		mark := "ok"
		if c.lost+c.doubled+c.disorder > 0 {
			mark, failed = "FAILED", true
		}
		d.say("   %-20s %7d written  %7d arrived  %d lost  %d doubled  %d out of order   %s", p.file, p.lines, c.lines, c.lost, c.doubled, c.disorder, mark)
	}
	if failed {
		return fmt.Errorf("%w: see the lines marked FAILED", ErrProof)
	}
	d.say("   Nothing lost, nothing doubled, all in order, two kill -9 included.")
	return nil
}

// counted is what a file of numbered lines holds.
type counted struct{ lines, lost, doubled, disorder int }

// count reads the file at path, whose lines must end in the numbers 1 to want, each once
// and in order. A line that ends in no number of these counts as out of order.
func count(path string, want int) (counted, error) {
	f, err := os.Open(path)
	if err != nil {
		return counted{}, fmt.Errorf("count the lines: %w", err)
	}
	defer f.Close()
	var c counted
	seen, last := make([]bool, want+1), 0
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		c.lines++
		words := strings.Fields(lines.Text())
		n := 0
		if len(words) > 0 {
			n, _ = strconv.Atoi(words[len(words)-1]) // no number is 0, and 0 is out of order
		}
		switch {
		case n < 1 || n > want:
			c.disorder++
			continue
		case seen[n]:
			c.doubled++
		case n < last:
			c.disorder++
		}
		seen[n], last = true, max(last, n)
	}
	if err := lines.Err(); err != nil {
		return c, fmt.Errorf("count the lines of %s: %w", path, err)
	}
	for _, s := range seen[1:] {
		if !s {
			c.lost++
		}
	}
	return c, nil
}
