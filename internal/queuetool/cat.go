package queuetool

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/queue"
)

// ErrUnreadable is returned by Cat where batches or records were left out since they
// cannot be read.
var ErrUnreadable = errors.New("some of it cannot be read")

// Cat prints the records of an export: for each batch a line that begins with "# ", for
// each record a line that begins with "== " and has its attributes, then its bytes and a
// newline where they do not end with one. With escape everything that could control a
// terminal is written as \xNN; names are escaped always.
func Cat(export io.Reader, w io.Writer, escape bool) error {
	x, err := queue.NewExportReader(export)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(w, 64<<10)
	var bad error
	for {
		s, err := x.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return errors.Join(err, out.Flush())
		}
		if err := catBatch(out, s, escape); err != nil {
			fmt.Fprintf(out, "# %v\n", err)
			bad = fmt.Errorf("%w: %w", ErrUnreadable, err)
		}
		if err := out.Flush(); err != nil {
			return fmt.Errorf("write records: %w", err)
		}
	}
	if n := x.Total.Unreadable; n > 0 {
		return fmt.Errorf("%w: %d batches; `ftfuse queue verify` names them", ErrUnreadable, n)
	}
	return bad
}

func catBatch(w *bufio.Writer, s batch.Sealed, escape bool) error {
	fmt.Fprintf(w, "# batch %v host %s sealed %s records %d payload %d via %d nodes\n", s.ID, Name(s.Host), stamp(s.Time), s.Records, s.Payload, len(s.Via))
	r, err := record.Open(s)
	for err == nil {
		var rec record.Record
		if rec, err = r.Next(); err == nil {
			catRecord(w, &rec, escape)
		}
	}
	if err == io.EOF {
		return nil
	}
	return err
}

func catRecord(w *bufio.Writer, rec *record.Record, escape bool) {
	fmt.Fprintf(w, "== %s %s pid %d uid %d gid %d %s", Name(rec.Host), Name(rec.Path), rec.PID, rec.UID, rec.GID, stamp(rec.Time))
	if rec.Process != nil {
		fmt.Fprintf(w, " exe %s cgroup %s", Name(rec.Exe()), Name(rec.Cgroup()))
	}
	for _, name := range record.FlagNames(rec.Flags) {
		fmt.Fprintf(w, " %s", name)
	}
	fmt.Fprintf(w, " %d bytes\n", len(rec.Data))
	if escape {
		_, _ = w.WriteString(Escape(string(rec.Data)))
	} else {
		_, _ = w.Write(rec.Data)
	}
	if n := len(rec.Data); n == 0 || rec.Data[n-1] != '\n' {
		_ = w.WriteByte('\n')
	}
}

func stamp(t int64) string { return time.Unix(0, t).UTC().Format(time.RFC3339Nano) }

// Name returns a name from the wire as one word that controls no terminal: quoted, as Go
// writes it, where it has spaces, quotes or anything that is not printed.
func Name(s string) string {
	plain := s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r == ' ' || r == '"' || r == '\\' || !unicode.IsPrint(r)
	})
	if plain {
		return s
	}
	return strconv.Quote(s)
}

// Escape writes every byte of s as \xNN that could control a terminal: control characters
// but newline and tab, what is no UTF-8, and characters that change the direction of text.
func Escape(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == '\n' || r == '\t':
			b.WriteByte(s[0])
		case r == utf8.RuneError && n == 1, unicode.IsControl(r), unicode.Is(unicode.Bidi_Control, r):
			for i := range n {
				fmt.Fprintf(&b, `\x%02x`, s[i])
			}
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}
