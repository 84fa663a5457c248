package daemon

import (
	"bufio"
	"fmt"
	"io"
	"log/syslog"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// syslogSocket is where syslog(3) sends to.
const syslogSocket = "/dev/log"

// OpenLog returns what the log of a program in the background goes to: the system's log, by
// way of a process of this program (path) that is started with env and has to call Syslog, or,
// where /dev/log is not there, the end of file. to names it for people.
func OpenLog(path string, args, env []string, file string) (log *os.File, to string, err error) {
	if _, err := os.Stat(syslogSocket); err != nil {
		log, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
		if err != nil {
			return nil, "", fmt.Errorf("%w: open its log: %w", ErrStart, err)
		}
		return log, file, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, "", fmt.Errorf("%w: make a pipe for its log: %w", ErrStart, err)
	}
	defer r.Close()
	cmd := &exec.Cmd{
		Path: path, Args: args, Dir: "/", Stdin: r, Env: append(withoutManager(os.Environ()), env...),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return nil, "", fmt.Errorf("%w: start what writes its log: %w", ErrStart, err)
	}
	_ = cmd.Process.Release() // it ends with the last who has the pipe
	return w, "the system's log", nil
}

// longestLine is what is taken for one line of the log; what is longer comes in pieces.
const longestLine = 64 << 10

// Syslog copies the lines of a log (package slog's, text or JSON) to the system's log, each at
// its level, until r ends. Lines that the system's log does not take are lost, as those of any
// program.
func Syslog(r io.Reader, tag string) error {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, tag)
	if err != nil {
		return fmt.Errorf("open the system's log: %w", err)
	}
	defer w.Close()
	lines := bufio.NewReaderSize(r, longestLine)
	for {
		line, _, err := lines.ReadLine()
		if err != nil {
			return nil // the last writer has ended
		}
		_ = level(w, string(line))(string(line)) // it connects again by itself
	}
}

// level is the method of w that the line's level asks for. A line without one is not of the
// log: a panic's.
func level(w *syslog.Writer, line string) func(string) error {
	switch levelOf(line) {
	case "DEBUG":
		return w.Debug
	case "INFO":
		return w.Info
	case "WARN":
		return w.Warning
	case "ERROR":
		return w.Err
	}
	return w.Crit
}

// levelOf is the level that a line of package slog's names, "" for any other line.
func levelOf(line string) string {
	for _, mark := range []string{" level=", `,"level":"`} {
		if _, rest, ok := strings.Cut(line[:min(len(line), 200)], mark); ok {
			return rest[:len(rest)-len(strings.TrimLeft(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"))]
		}
	}
	return ""
}
