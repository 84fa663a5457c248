package k2hft

import (
	"cmp"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// mount writes [mount] for K2HFTFUSE.
func (w *writer) mount(d *document, c *cluster, at Mountpoint) {
	main := d.one(secMain)
	w.table("[mount]")
	w.point(at)
	if e := main.get("EXPIRE"); e != nil {
		if seconds, err := strconv.Atoi(e.value); err == nil && seconds > 0 {
			w.table("[mount.queue]")
			w.key("max_age", text(fmt.Sprintf("%ds", seconds)), e)
			w.say("What is older is dropped, and counted by `ftfuse status`.")
		} else {
			w.none(e, "not a number of seconds above 0: nothing expires")
		}
	}
	for _, b := range batching {
		if e := main.get(b.key); e != nil && e.value != "0" {
			w.none(e, "%s", b.why)
		}
	}
	binary := main.yes("BINTRANS", false)
	rules := w.rules(d, at, binary)
	w.directories(rules, at)
	for _, r := range rules {
		w.rule(r, main.get("BINTRANS"))
	}
	w.table("[[mount.rule]]")
	w.say("K2HFTFUSE lets no file be made that no rule names. ftfuse does; with this last rule such a file stays here, and without it, it is transferred.")
	w.key("path", text("**"))
	w.key("transfer", "false")
	w.forward("mount", c, d.one(secDtor))
}

var batching = []struct{ key, why string }{
	{"TRANSLINECNT", "nothing to set: lines are batched by commit_every and commit_bytes in [mount.queue], and none waits for others to come"},
	{"TRANSTIMEUP", "nothing to set: what was written is on its way after commit_every (5 ms), however little it is"},
	{"BYTELIMIT", "K2HFTFUSE throws longer data away; ftfuse transfers a line of any length whole (above max_line in pieces that come out as one line)"},
}

// point writes what is known of the mount point.
func (w *writer) point(at Mountpoint) {
	if at.Point == "" {
		w.none(nil, "K2HFTFUSE is given the mount point in fstab or on its command line: write it here (`ftfuse convert --point DIR`)")
		at.Point = defaultPoint
	}
	w.key("point", text(at.Point))
	if at.From == "" {
		return
	}
	w.say("The following is from %s.", at.From)
	w.key("allow_other", strconv.FormatBool(at.AllowOther))
	for _, o := range []struct{ key, value string }{{"umask", at.Umask}, {"uid", at.UID}, {"gid", at.GID}} {
		base := 10
		if o.key == "umask" {
			base = 8
		}
		n, err := strconv.ParseUint(o.value, base, 32)
		switch {
		case o.value == "":
		case err != nil || n > 0o777 && base == 8 || n == math.MaxUint32:
			w.none(nil, "%s=%s in %s: write a number", o.key, o.value, at.From)
		case base == 8:
			w.key(o.key, text(fmt.Sprintf("%03o", n)))
		default:
			w.key(o.key, strconv.FormatUint(n, 10))
		}
	}
	for _, o := range at.Other {
		w.none(nil, "%s in %s: %s", o, at.From, optionNote(o))
	}
}

func optionNote(o string) string {
	switch name, _, _ := strings.Cut(o, "="); name {
	case "dbglevel":
		return "log = { level = \"debug\" } says more"
	case "chmpxlog", "enable_run_chmpx", "disable_run_chmpx":
		return "there is no second process to run: the transport is in the mount"
	}
	return "leave it in fstab if it is an option of mount(8); ftfuse's own are in docs/configuration.md"
}

// rule is a section as it is used: of several with the same TARGET the last one counts.
type rule struct {
	s      *section
	dir    bool
	binary bool
	target string
	at     Mountpoint
}

// rules returns the rules in the order that gives files precedence over directories.
func (w *writer) rules(d *document, at Mountpoint, binary bool) []rule {
	var files, dirs []rule
	for _, s := range d.sections {
		if s.name != secDir && s.name != secFile {
			continue
		}
		r := rule{s: s, dir: s.name == secDir, binary: binary, target: strings.Trim(path.Clean("/"+s.value("TARGET")), "/"), at: at}
		if r.target == "" && !r.dir {
			w.none(s.get("TARGET"), "a rule of line %d for no file: left out", s.line)
			s.dropped()
			continue
		}
		into := &files
		if r.dir {
			into = &dirs
		}
		*into = w.put(*into, r)
	}
	return append(files, dirs...)
}

// directories says which must be made: K2HFTFUSE shows those of its rules by itself.
func (w *writer) directories(rules []rule, at Mountpoint) {
	var all []string
	for _, r := range rules {
		dir := r.target
		if !r.dir {
			dir = path.Dir(dir)
		}
		if dir = path.Join(cmp.Or(at.Point, defaultPoint), dir); dir != cmp.Or(at.Point, defaultPoint) && !slices.Contains(all, dir) {
			all = append(all, dir)
		}
	}
	if len(all) == 0 {
		return
	}
	slices.Sort(all)
	for i, dir := range all {
		all[i] = shell(dir)
	}
	w.none(nil, "K2HFTFUSE shows the directories of its rules; here they are made once, with the owners that programs need: mkdir -p %s", strings.Join(all, " "))
}

// shell quotes a word for a shell where it needs that.
func shell(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./+,:@%") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// defaultPoint is the mount point of a configuration that does not know it.
const defaultPoint = "/mnt/ftfuse"

// put adds r in the place of one with the same target.
func (w *writer) put(all []rule, r rule) []rule {
	for i := range all {
		if escapeGlob(all[i].target) == escapeGlob(r.target) { // but for what is not UTF-8, the TARGET
			w.none(all[i].s.get("TARGET"), "the rule of line %d has the same TARGET and wins, as in K2HFTFUSE: this one is left out", r.s.line)
			all[i].s.dropped()
			all[i] = r
			return all
		}
	}
	return append(all, r)
}

func (s *section) dropped() {
	for _, e := range s.entries {
		e.said = true
	}
}

// rule writes one [[mount.rule]].
func (w *writer) rule(r rule, bin *entry) {
	w.table("[[mount.rule]]")
	w.say("[%s] of line %d", r.s.name, r.s.line)
	glob := escapeGlob(r.target)
	if r.dir {
		glob = strings.TrimPrefix(glob+"/*", "/")
		w.key("path", text(glob), r.s.get("TARGET"))
		w.say("The files right in that directory, as K2HFTFUSE has it; %s would be those in all directories below, too.", text(strings.TrimSuffix(glob, "*")+"**"))
	} else {
		w.key("path", text(glob), r.s.get("TARGET"))
	}
	if !utf8.ValidString(r.target) {
		w.none(r.s.get("TARGET"), "%v: in path a ? stands for each such byte, and matches any character", errEncoding)
	}
	transfer := r.s.yes("TRUNS", false)
	w.key("transfer", strconv.FormatBool(transfer), r.s.get("TRUNS"))
	if r.binary {
		w.key("mode", text("binary"), bin)
		r.ignoreFilters(w)
	} else {
		w.filters(r.s)
	}
	w.output(r)
}

// ignoreFilters says what K2HFTFUSE does with filters of binary data.
func (r rule) ignoreFilters(w *writer) {
	for _, e := range r.s.entries {
		if e.filter != nil || e.key == "DEFAULTALL" {
			w.none(e, "ignored with BINTRANS, as K2HFTFUSE does: all of a binary file is let through")
		}
	}
}

// escapeGlob returns the glob for the path s alone. What is not UTF-8 in it is ?, byte by byte.
func escapeGlob(s string) string {
	var b strings.Builder
	for s != "" {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			b.WriteByte('?')
		case strings.ContainsRune(`*?[]{}\`, r):
			b.WriteString(`\` + s[:n])
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// output writes where a rule's lines go on this host: a file, or a plugin whose output it is.
func (w *writer) output(r rule) {
	out, plug := r.s.get("OUTPUTFILE"), r.s.get("PLUGIN")
	file, ok := w.outputFile(r, out)
	if plug == nil || plug.value == "" {
		if ok {
			w.key("output", text(w.apart(file, false, out)), out)
		}
		return
	}
	argv := command(plug.value)
	if len(argv) == 0 {
		w.none(plug, "no command: left out")
		return
	}
	w.key("plugin", list(argv), plug)
	if r.dir {
		w.say("One process for the rule, and not one for each file; FTFUSE_RULE in its environment is the rule's path.")
	}
	if !ok {
		return
	}
	if strings.Contains(file, "%f") {
		dir := path.Dir(file)
		file = path.Join(dir, path.Base("/"+r.target)+".out")
		w.none(out, "K2HFTFUSE has a plugin and a file of its output for each file; here the rule has one")
	}
	w.key("plugin_output", text(strings.ReplaceAll(w.apart(file, true, out), "%%", "%")), out)
}

// outputFile returns the template of the rule's OUTPUTFILE, and whether there is one.
func (w *writer) outputFile(r rule, e *entry) (string, bool) {
	if e == nil {
		return "", false
	}
	e.said = true
	switch v := e.value; {
	case v == "" || v == "/dev/null":
		return "", false
	case v[0] != '/' || r.at.below(v):
		w.none(e, "a file below the mount point: ftfuse never writes to its own mount. Let the rule of that file do what this one should, or name a file elsewhere")
		return "", false
	default:
		file := strings.ReplaceAll(path.Clean(v), "%", "%%")
		if strings.HasSuffix(v, "/") {
			file = strings.TrimSuffix(file, "/") + "/%f"
		}
		return file, true
	}
}

// command splits a PLUGIN as K2HFTFUSE does: VAR=VALUE words, the program, its arguments.
func command(v string) []string {
	words := strings.Fields(v)
	n := 0
	for n < len(words) && strings.Contains(words[n], "=") {
		n++
	}
	if n == len(words) {
		return nil
	}
	if n > 0 || !strings.HasPrefix(words[n], "/") {
		return append([]string{"/usr/bin/env"}, words...)
	}
	return words
}
