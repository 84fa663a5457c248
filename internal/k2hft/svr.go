package k2hft

import (
	"fmt"
	"path"
	"strings"

	"ftfuse/internal/template"
)

// svr writes [receive] or [relay] for K2HFTFUSESVR: its TYPE says which. next reads TRANSCONF.
func (w *writer) svr(d *document, c *cluster, next func() *cluster) {
	s := d.one(secSvr)
	e := s.get("TYPE")
	listen, from := c.listen()
	switch strings.ToUpper(s.value("TYPE")) {
	case "T", "TRANS", "TRANSFER":
		w.table("[relay]")
		w.key("listen", text(listen), append(from, e)...)
		w.only(s, "with TYPE = trans nothing is written here", "FILE_BASEDIR", "FILE_UNIFY", "FILE_TIMEFORM", "FORMAT", "PLUGIN")
		w.next(s, next())
	case "B", "BOTH":
		w.table("[relay]")
		w.key("listen", text(listen), append(from, e)...)
		w.next(s, next())
		w.outputs("relay", s)
	default:
		w.table("[receive]")
		w.key("listen", text(listen), append(from, e)...)
		w.only(s, "with TYPE = file nothing is passed on", "TRANSCONF")
		w.outputs("receive", s)
	}
	if e := s.get("BINTRANS"); e != nil {
		w.none(e, "nothing to set: mode = \"binary\" of a rule on the mount marks the data, and they come out as they went in")
	}
	w.slaves(d, c)
}

// only says that keys are without meaning, and why.
func (w *writer) only(s *section, why string, keys ...string) {
	for _, key := range keys {
		if e := s.get(key); e != nil && e.value != "" {
			w.none(e, "%s", why)
		}
	}
}

// next writes where a relay sends to: the servers of TRANSCONF.
func (w *writer) next(s *section, next *cluster) {
	e := s.get("TRANSCONF")
	if next == nil {
		w.none(e, "no CHMPX configuration of the next servers could be read: name them in primary")
		next = &cluster{d: &document{}, global: &section{}}
	} else if e != nil {
		e.said = true
		w.say("To the servers of TRANSCONF (line %d):", e.line)
	}
	w.forward("relay", next, next.d.one(secDtor))
}

// outputs writes the one output.
func (w *writer) outputs(role string, s *section) {
	w.table("[[" + role + ".output]]")
	dir, unify, plug := s.get("FILE_BASEDIR"), s.get("FILE_UNIFY"), s.get("PLUGIN")
	one := ""
	if unify != nil {
		one = strings.ReplaceAll(strings.Trim(path.Clean("/"+unify.value), "/"), "%", "%%")
	}
	if dir == nil || !strings.HasPrefix(dir.value, "/") {
		w.none(dir, "an absolute path is needed: here the default of ftfuse")
	} else {
		w.key("dir", text(path.Clean(dir.value)), dir)
	}
	plugin := plug != nil && len(command(plug.value)) > 0
	if one == "" && unify != nil && unify.value != "" {
		w.none(unify, "no name of a file: left out")
	}
	switch {
	case one != "":
		w.key("file", text(one), unify)
	case plugin:
		w.key("file", text("plugin.out"))
		w.none(plug, "K2HFTFUSE starts a plugin for each file; here there is one, and one file for its output")
	default:
		w.key("file", text("%F"))
		w.say("As K2HFTFUSE has it: files of the same path on several hosts become one. \"%%H/%%F\" would keep the hosts apart.")
	}
	w.format(s)
	if plugin {
		w.key("plugin", list(command(plug.value)), plug)
	}
}

// format writes format and time.
func (w *writer) format(s *section) {
	f, t := s.get("FORMAT"), s.get("FILE_TIMEFORM")
	layout := ""
	if t != nil && t.value != "" {
		layout = w.timeFormat(t)
	}
	if f != nil && f.value != "" {
		form := w.lineFormat(f, layout != "")
		check := layout
		if check == "" {
			check = "%s"
		}
		if _, err := template.Compile(template.Format, form, check); err != nil {
			w.none(f, "%v: only the lines themselves are written", err)
			form = "%L"
		}
		w.key("format", text(form), f)
	}
	if layout != "" {
		w.key("time", text(layout), t)
	}
}

// timeFormat translates a format of strftime(3) with %- for nanoseconds.
func (w *writer) timeFormat(e *entry) string {
	var b strings.Builder
	v := e.value
	for i := 0; i < len(v); i++ {
		switch {
		case v[i] == '\n' || v[i] == 0:
			b.WriteByte(' ')
			continue
		case v[i] != '%':
			b.WriteByte(v[i])
			continue
		case i+1 == len(v):
			continue
		}
		i++
		c := v[i]
		if (c == 'E' || c == 'O') && i+1 < len(v) {
			w.none(e, "%%%c%c: there are no locales; it is %%%c", c, v[i+1], v[i+1])
			i++
			c = v[i]
		}
		if c == '-' || strings.IndexByte(template.Conversions, c) >= 0 {
			b.WriteString("%" + string(c))
			continue
		}
		w.none(e, "%%%c is not known, and left out", c)
	}
	return b.String()
}

// lineFormat translates a FORMAT: its directives, and the escapes of C.
func (w *writer) lineFormat(e *entry, timed bool) string {
	var b strings.Builder
	v, data := e.value, 0
	for i := 0; i < len(v); i++ {
		if v[i] == '\\' {
			text, n, ok := cEscape(v[i:])
			if !ok {
				w.none(e, "it ends at %q, as K2HFTFUSE has it", v[i:])
				break
			}
			b.WriteString(strings.ReplaceAll(text, "%", "%%"))
			i += n - 1
			continue
		}
		if v[i] != '%' {
			b.WriteByte(v[i])
			continue
		}
		if i++; i == len(v) {
			break
		}
		data += w.directive(&b, e, v[i], timed)
	}
	form := b.String()
	if strings.HasSuffix(form, "\n") {
		form = strings.TrimSuffix(form, "\n")
		w.say("%s: the line's own end follows the format.", e.where())
	}
	if strings.Contains(form, "\n") {
		w.none(e, "a line end in the middle: a blank stands there, so that a line stays a line")
		form = strings.ReplaceAll(form, "\n", " ")
	}
	if at := strings.Index(form, "%L"); at >= 0 && at+2 < len(form) {
		w.say("%s: K2HFTFUSE's %%L has the end of the line in it; here it comes behind the format.", e.where())
	}
	if data == 0 {
		w.say("%s: no %%L: lines without the data.", e.where())
	}
	return form
}

// directive writes one % of a FORMAT, and returns 1 for the data.
func (w *writer) directive(b *strings.Builder, e *entry, c byte, timed bool) int {
	switch c {
	case '%', 'f', 'F':
		b.WriteString("%" + string(c))
	case 'P', 'p', 'H', 'h':
		b.WriteString("%" + strings.ToUpper(string(c)))
	case 'T', 't':
		if timed {
			b.WriteString("%T")
		} else {
			w.none(e, "%%%c without FILE_TIMEFORM is nothing in K2HFTFUSE: left out", c)
		}
	case 'l':
		w.none(e, "%%l takes the blanks off both ends of the line; %%L is the line as it was written")
		b.WriteString("%L")
		return 1
	case 'L':
		b.WriteString("%L")
		return 1
	default:
		b.WriteByte(c)
	}
	return 0
}

// cEscape reads an escape at the beginning of s, and returns what it stands for and its
// length. false: the format ends there.
func cEscape(s string) (string, int, bool) {
	if len(s) < 2 || s[1] == '0' {
		return "", 0, false
	}
	switch c := s[1]; c {
	case '\\', '"', '\'', '?':
		return string(c), 2, true
	case 'x':
		n := 2
		v := 0
		for n < len(s) && n < 4 && strings.IndexByte("0123456789abcdefABCDEF", s[n]) >= 0 {
			digit := 0
			fmt.Sscanf(s[n:n+1], "%x", &digit)
			v = v*16 + digit
			n++
		}
		return string(rune(v)), n, n > 2 && v > 0
	default:
		if at := strings.IndexByte("abfnrt", c); at >= 0 {
			return string("\a\b\f\n\r\t"[at]), 2, true
		}
		if c >= '1' && c <= '8' {
			return string(rune(c - '0')), 2, true
		}
	}
	return "", 2, true
}

// slaves says who may connect.
func (w *writer) slaves(d *document, c *cluster) {
	for _, s := range d.all(secSlave) {
		e := s.get("NAME")
		switch {
		case e == nil:
		case !c.tls:
			w.none(e, "without tls everybody may connect, and nobody knows who it is; with tls the name in a peer's certificate counts")
		default:
			w.none(e, "with tls each host of the CA may send what it wrote itself; allow = { \"relay-*\" = [\"*\"] } lets relays send what others wrote")
		}
	}
}
