package template

import (
	"encoding/base64"
	"strconv"
	"strings"
	"unicode/utf8"
)

// JSON is the text of a format that writes one JSON object (RFC 8259) a line, with all
// attributes:
//
//	{"time":"2026-11-23T07:15:00.000000042+0000","time_ns":1795418100000000042,"host":"web-01",
//	 "path":"logs/app.log","file":"app.log","pid":4711,"uid":1000,"gid":100,
//	 "exe":"/usr/bin/app","cgroup":"/system.slice/app.service","seq":"…","flags":["opener"],"data":"the line"}
//
// time is formatted as a plain %T is. exe and cgroup are absent where they are not known, flags
// where there is none. A text that is not UTF-8 stands in base64 (RFC 4648, with padding) under
// its name and "_base64" in its place. An object holds no line end, whatever its data.
const JSON = "json"

// compileJSON makes t a template of JSON.
func (c *compiler) compileJSON(t *Template) error {
	l, at, msg := compileLayout(c.timeFormat)
	if msg != "" {
		return c.fail(0, "it uses time %q, byte %d: %s", c.timeFormat, at+1, msg)
	}
	t.json, t.pre = true, []op{{kind: opTime, layout: l}}
	t.fields = Host | Path | PID | UID | GID | Time | Line | Seq | Exe | Cgroup | Flags
	return nil
}

// JSON reports whether the template writes objects. What stands before the line is then what
// is the same for all lines of a record, and AppendObject appends the rest, line and all.
func (t *Template) JSON() bool { return t.json }

// appendHead appends an object up to what differs between the lines of a record.
func (r *Renderer) appendHead(dst []byte, v *Values) []byte {
	r.text = r.pre[0].cache.append(r.text[:0], v.Time)
	dst = appendText(append(dst, '{'), "time", string(r.text))
	dst = append(strconv.AppendInt(append(dst, `,"time_ns":`...), v.Time, 10), ',')
	dst = append(appendText(dst, "host", v.Host), ',')
	dst = append(appendText(dst, "path", v.Path), ',')
	dst = appendText(dst, "file", v.Path[strings.LastIndexByte(v.Path, '/')+1:])
	dst = strconv.AppendUint(append(dst, `,"pid":`...), uint64(v.PID), 10)
	dst = strconv.AppendUint(append(dst, `,"uid":`...), uint64(v.UID), 10)
	dst = strconv.AppendUint(append(dst, `,"gid":`...), uint64(v.GID), 10)
	if v.Exe != "" {
		dst = appendText(append(dst, ','), "exe", v.Exe)
	}
	if v.Cgroup != "" {
		dst = appendText(append(dst, ','), "cgroup", v.Cgroup)
	}
	return dst
}

// AppendObject appends the rest of the object that AppendBefore began, for a template of JSON:
// with the number and the flags that v has now, and the line.
func (r *Renderer) AppendObject(dst []byte, v *Values, line []byte) []byte {
	dst = append(appendSeq(append(dst, `,"seq":"`...), v), '"')
	for i, name := range v.Flags {
		if i == 0 {
			dst = append(dst, `,"flags":[`...)
		} else {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, '"'), name...), '"')
		if i == len(v.Flags)-1 {
			dst = append(dst, ']')
		}
	}
	return append(appendText(append(dst, ','), "data", line), '}')
}

// appendText appends "name":"text", in base64 under another name where it is not UTF-8.
func appendText[T string | []byte](dst []byte, name string, text T) []byte {
	dst = append(append(dst, '"'), name...)
	if !validText(text) {
		dst = base64.StdEncoding.AppendEncode(append(dst, `_base64":"`...), []byte(text))
		return append(dst, '"')
	}
	return append(appendEscaped(append(dst, `":"`...), text), '"')
}

func validText[T string | []byte](text T) bool {
	switch s := any(text).(type) {
	case string:
		return utf8.ValidString(s)
	case []byte:
		return utf8.Valid(s)
	}
	return false
}

// appendEscaped appends what is UTF-8 as RFC 8259 has it in a string; U+2028 and U+2029, which
// end a line for some readers, are escaped, too.
func appendEscaped[T string | []byte](dst []byte, text T) []byte {
	const hex = "0123456789abcdef"
	from := 0
	for i := 0; i < len(text); i++ {
		b := text[i]
		if b >= ' ' && b != '"' && b != '\\' && b != 0xe2 {
			continue
		}
		if b == 0xe2 && !(text[i+1] == 0x80 && text[i+2]&^1 == 0xa8) {
			continue
		}
		dst = append(dst, text[from:i]...)
		switch b {
		case '"', '\\':
			dst = append(dst, '\\', b)
		case '\t':
			dst = append(dst, `\t`...)
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		case 0xe2:
			dst = append(append(dst, `\u202`...), hex[8|text[i+2]&1])
			i += 2
		default:
			dst = append(append(dst, `\u00`...), hex[b>>4], hex[b&15])
		}
		from = i + 1
	}
	return append(dst, text[from:]...)
}
