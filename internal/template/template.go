// Package template compiles the `file` and `format` texts of an output once and runs
// them by appending to a byte slice.
//
// The directives are those of docs/configuration.md:
//
//	%H host            %F path, no leading slash   %T time, by the output's `time`
//	%P pid             %f last element of path     %{FORMAT}T time, by FORMAT
//	%U uid             %L the line (format only)   %N sequence of the line
//	%G gid             %% a percent sign
//	%E program         %C control group (both in format only; "-" where not known)
//
// Whose pid and which time these are depends on the attribution of the file at the source.
// With "write" they are the thread's that wrote and the time of its write(2). With "open"
// %P, %U and %G are those of who opened the file, the newest where several have it open
// (record.Several), and %T is when the bytes were captured (record.Opener).
//
// The format "json" writes objects with all of them: see JSON.
//
// What a template renders depends on nothing but the template, the Values and the
// zone it is bound to: a receiver that redoes a write after a crash gets the same bytes.
//
// A Template is immutable and safe for concurrent use. A Renderer caches and is not.
package template

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"ftfuse/internal/batch"
)

// ErrSyntax is in the chain of every error of Compile.
var ErrSyntax = errors.New("template")

// Error says what is wrong with a template, and where.
type Error struct {
	Use  Use
	Text string // the whole template
	Pos  int    // byte in Text, counted from 0
	Msg  string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s %q, byte %d: %s", e.Use, e.Text, e.Pos+1, e.Msg)
}

// Unwrap returns ErrSyntax.
func (e *Error) Unwrap() error { return ErrSyntax }

// Use says what a template is for.
type Use uint8

// The two uses.
const (
	File   Use = iota // a file name below the output's dir: no %L, no absolute path, no ".."
	Format            // one line of output: %L at most once
)

func (u Use) String() string {
	if u == File {
		return "file"
	}
	return "format"
}

// Fields is a set of the attributes a template looks at.
type Fields uint16

// The attributes.
const (
	Host Fields = 1 << iota
	Path        // %F or %f
	PID
	UID
	GID
	Time
	Line
	Seq
	Exe
	Cgroup
	Flags
)

// Values is what the directives stand for in one line. The template reads it and keeps
// no reference.
type Values struct {
	Host, Path    string
	PID, UID, GID uint32
	Time          int64    // Unix nanoseconds
	ID            batch.ID // of the batch the line came in
	Number        uint64   // of the line in the batch, counted from 1
	Exe, Cgroup   string   // of the process; "" is not known
	Flags         []string // names, for JSON alone; they need no escapes
}

type opKind uint8

const (
	opText opKind = iota
	opHost
	opPID
	opUID
	opGID
	opPath
	opBase
	opTime
	opSeq
	opExe
	opCgroup
)

type op struct {
	kind   opKind
	text   string
	layout *layout
}

// Template is a compiled template.
type Template struct {
	use    Use
	text   string
	pre    []op // up to %L, or all when there is none
	post   []op // behind %L
	fields Fields
	json   bool
}

// Compile compiles text. timeFormat is the strftime format of a plain %T. Every error
// is an *Error.
func Compile(use Use, text, timeFormat string) (*Template, error) {
	c := compiler{use: use, text: text, timeFormat: timeFormat}
	t := &Template{use: use, text: text}
	if err := c.run(t); err != nil {
		return nil, err
	}
	return t, nil
}

// String returns the text it was compiled from.
func (t *Template) String() string { return t.text }

// Fields returns the attributes that the result depends on.
func (t *Template) Fields() Fields { return t.fields }

// Exact reports whether the template is exactly "%L": the bytes go out as they came.
func (t *Template) Exact() bool {
	return t.fields == Line && len(t.pre) == 0 && len(t.post) == 0
}

// Literal returns the constant that the template always renders, if it is one.
func (t *Template) Literal() (string, bool) {
	if t.fields != 0 {
		return "", false
	}
	var b strings.Builder
	for _, o := range t.pre {
		b.WriteString(o.text)
	}
	return b.String(), true
}

// Bind returns a Renderer that shows times in zone.
func (t *Template) Bind(zone *time.Location) *Renderer {
	if zone == nil {
		zone = time.UTC
	}
	r := &Renderer{t: t, zone: zone}
	r.pre, r.post = r.bind(t.pre), r.bind(t.post)
	return r
}

// Renderer runs one template. It caches the second that it formatted last, so it
// belongs to one goroutine.
type Renderer struct {
	t         *Template
	zone      *time.Location
	pre, post []bound
	text      []byte // scratch
}

type bound struct {
	op
	cache *timeCache // of opTime
}

func (r *Renderer) bind(ops []op) []bound {
	out := make([]bound, len(ops))
	for i, o := range ops {
		out[i].op = o
		if o.kind == opTime {
			out[i].cache = &timeCache{layout: o.layout, zone: r.zone}
		}
	}
	return out
}

// Template returns the template that r runs.
func (r *Renderer) Template() *Template { return r.t }

// Append appends the result for one line. A file name takes no line.
func (r *Renderer) Append(dst []byte, v *Values, line []byte) []byte {
	dst = r.AppendBefore(dst, v)
	if r.t.json {
		return r.AppendObject(dst, v, line)
	}
	if r.t.fields&Line != 0 {
		dst = append(dst, line...)
	}
	return run(dst, r.post, v)
}

// AppendBefore appends what stands before the line; all of it when the template has
// no %L.
func (r *Renderer) AppendBefore(dst []byte, v *Values) []byte {
	if r.t.json {
		return r.appendHead(dst, v)
	}
	return run(dst, r.pre, v)
}

// AppendAfter appends what stands behind the line.
func (r *Renderer) AppendAfter(dst []byte, v *Values) []byte { return run(dst, r.post, v) }

func run(dst []byte, ops []bound, v *Values) []byte {
	for i := range ops {
		o := &ops[i]
		switch o.kind {
		case opText:
			dst = append(dst, o.text...)
		case opHost:
			dst = append(dst, v.Host...)
		case opPath:
			dst = append(dst, v.Path...)
		case opBase:
			dst = append(dst, v.Path[strings.LastIndexByte(v.Path, '/')+1:]...)
		case opPID:
			dst = strconv.AppendUint(dst, uint64(v.PID), 10)
		case opUID:
			dst = strconv.AppendUint(dst, uint64(v.UID), 10)
		case opGID:
			dst = strconv.AppendUint(dst, uint64(v.GID), 10)
		case opTime:
			dst = o.cache.append(dst, v.Time)
		case opSeq:
			dst = appendSeq(dst, v)
		case opExe:
			dst = append(dst, orDash(v.Exe)...)
		case opCgroup:
			dst = append(dst, orDash(v.Cgroup)...)
		}
	}
	return dst
}

// orDash is s, and "-" for what is not known, so that columns stay what they are.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// appendSeq appends ORIGIN-COUNTER-RANDOM-ROUTE-BUCKET-N-NUMBER: origin and random as
// 32 and 16 hexadecimal digits, the others decimal. It holds no slash, so that it can
// stand in a file name.
func appendSeq(dst []byte, v *Values) []byte {
	const hex = "0123456789abcdef"
	l := &v.ID.Lane
	for _, b := range l.Origin {
		dst = append(dst, hex[b>>4], hex[b&15])
	}
	dst = append(dst, '-')
	dst = strconv.AppendUint(dst, l.Epoch.Counter, 10)
	dst = append(dst, '-')
	for shift := 60; shift >= 0; shift -= 4 {
		dst = append(dst, hex[l.Epoch.Random>>shift&15])
	}
	for _, n := range [...]uint64{uint64(l.Route), uint64(l.Bucket), v.ID.N, v.Number} {
		dst = append(dst, '-')
		dst = strconv.AppendUint(dst, n, 10)
	}
	return dst
}

// WholePath reports whether the result holds the whole of the record's path (%F), so
// that two paths of one host never share it by its name alone.
func (t *Template) WholePath() bool {
	for _, ops := range [][]op{t.pre, t.post} {
		for _, o := range ops {
			if o.kind == opPath {
				return true
			}
		}
	}
	return false
}
