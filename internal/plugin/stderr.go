package plugin

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Bounds of what a plugin can put into the log.
const (
	maxLogLine  = 1024 // bytes of a line; the rest is left out
	logBurst    = 50   // lines at once
	logInterval = 100 * time.Millisecond
)

// lineLog puts what a plugin writes to its standard error into the log: line by line, at
// most ten a second but for a burst, with what is not printable escaped. One goroutine at a
// time uses it.
type lineLog struct {
	log   *slog.Logger
	rule  string
	count *counters
	limiter
}

// limiter says what may be logged of what a plugin does.
type limiter struct {
	room    int       // lines that may be logged now
	at      time.Time // when room was counted
	leftOut uint64    // lines since the last that was logged
}

func newLimiter() limiter { return limiter{room: logBurst} }

// admit reports whether a line may be logged, and how many were left out before it.
func (l *limiter) admit(now time.Time) (leftOut uint64, ok bool) {
	if n := int(now.Sub(l.at) / logInterval); n > 0 {
		l.room, l.at = min(logBurst, l.room+n), now
	}
	if l.room == 0 {
		l.leftOut++
		return 0, false
	}
	l.room--
	leftOut, l.leftOut = l.leftOut, 0
	return leftOut, true
}

func newLineLog(log *slog.Logger, rule string, count *counters) *lineLog {
	return &lineLog{log: log, rule: rule, count: count, limiter: newLimiter()}
}

// from logs the lines of r until its end.
func (l *lineLog) from(r io.Reader, pid int) {
	b := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, err := b.ReadSlice('\n')
		text := escape(strings.TrimRight(string(line), "\r\n"))
		rest := 0
		for err == bufio.ErrBufferFull {
			line, err = b.ReadSlice('\n')
			rest += len(line)
		}
		if rest > 0 {
			text += fmt.Sprintf(" (and %d bytes)", rest)
		}
		if text != "" {
			l.say(text, pid, time.Now())
		}
		if err != nil {
			break
		}
	}
	if l.leftOut > 0 {
		l.log.Warn("lines of a plugin were left out", "plugin", l.rule, "pid", pid, "left_out", l.leftOut)
		l.leftOut = 0
	}
}

func (l *lineLog) say(text string, pid int, now time.Time) {
	l.count.logLines.Add(1)
	leftOut, ok := l.admit(now)
	if !ok {
		l.count.logLeftOut.Add(1)
		return
	}
	attrs := []any{"plugin", l.rule, "pid", pid, "line", text}
	if leftOut > 0 {
		attrs = append(attrs, "left_out", leftOut)
	}
	l.log.Warn("a plugin says", attrs...)
}

// escape makes what is not printable visible, so that a plugin neither moves a terminal's
// cursor nor forges a line of the log.
func escape(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1, r < 0x80 && !unicode.IsPrint(r):
			fmt.Fprintf(&b, "\\x%02x", s[0])
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, "\\u%04x", r)
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}
