package config

import (
	"regexp"
	"strconv"
	"strings"
)

// positions maps key paths to lines, counted from 1. A path is dotted; an element of
// an array is name[index], from 0; a name that is not a bare key is quoted.
type positions map[string]int

// line returns the line of path, or that of the nearest table around it; 0 when
// nothing is known.
func (p positions) line(path string) int {
	for path != "" {
		if n, ok := p[path]; ok {
			return n
		}
		path = parent(path)
	}
	return p[""]
}

// maxPath bounds what a hostile document can make of a path: keys behind a longer one
// have the line of the table around them. ftfuse's own keys are far shorter.
const maxPath = 256

func (p positions) note(path string, line int) {
	if _, ok := p[path]; !ok {
		p[path] = line
	}
}

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func join(path, key string) string {
	if !bareKey.MatchString(key) {
		key = strconv.Quote(key)
	}
	switch {
	case path == "":
		return key
	case len(path) > maxPath:
		return path
	}
	return path + "." + key
}

func element(path string, i int) string {
	if len(path) > maxPath {
		return path
	}
	return path + "[" + strconv.Itoa(i) + "]"
}

// parent cuts the last element or name off path. Dots and brackets inside quoted
// names may cut a name short: the result is then simply not found.
func parent(path string) string {
	if i := strings.LastIndexAny(path, ".["); i >= 0 {
		return path[:i]
	}
	return ""
}

var indexSuffix = regexp.MustCompile(`\[\d+\]`)

// plainKey is path without indices, as an operator would write it.
func plainKey(path string) string { return indexSuffix.ReplaceAllString(path, "") }

// twice is a key that is defined a second time.
type twice struct {
	path          string
	first, second int // lines
}

// scanner finds the line of every key of a TOML document. It is used on documents
// that the TOML parser accepted, and so does not check them; on anything else its
// result is meaningless but it terminates without a panic.
type scanner struct {
	src    string
	i      int
	at     int // line of src[i]
	pos    positions
	arrays map[string]int // path of an array of tables -> number of elements
	again  []twice
}

// scan returns the positions of all keys of src, and the keys that are defined again,
// of which the TOML parser misses some (a.b = 1, then a = 2).
func scan(src string) (positions, []twice) {
	s := &scanner{src: strings.TrimPrefix(src, "\ufeff"), at: 1, pos: positions{"": 1}, arrays: map[string]int{}}
	table := ""
	for {
		s.blank()
		if s.i >= len(s.src) {
			return s.pos, s.again
		}
		start := s.i
		if s.src[s.i] == '[' {
			table = s.header()
		} else {
			s.pair(table)
		}
		if s.i == start { // not TOML: go on behind it
			s.next()
		}
	}
}

// next steps over one byte and counts lines.
func (s *scanner) next() {
	if s.i < len(s.src) {
		if s.src[s.i] == '\n' {
			s.at++
		}
		s.i++
	}
}

func (s *scanner) peek() byte {
	if s.i < len(s.src) {
		return s.src[s.i]
	}
	return 0
}

// accept steps over c if it is next.
func (s *scanner) accept(c byte) bool {
	if s.i < len(s.src) && s.src[s.i] == c {
		s.next()
		return true
	}
	return false
}

// spaces steps over spaces and tabs.
func (s *scanner) spaces() {
	for s.i < len(s.src) && (s.src[s.i] == ' ' || s.src[s.i] == '\t') {
		s.i++
	}
}

// blank steps over white space, line ends and comments.
func (s *scanner) blank() {
	for s.i < len(s.src) {
		switch s.src[s.i] {
		case ' ', '\t', '\r', '\n':
			s.next()
		case '#':
			for s.i < len(s.src) && s.src[s.i] != '\n' {
				s.i++
			}
		default:
			return
		}
	}
}

// header reads [a.b] or [[a.b]] and returns the path of the table it opens.
func (s *scanner) header() string {
	line := s.at
	s.next()
	array := s.accept('[')
	names := s.key()
	s.accept(']')
	if array {
		s.accept(']')
	}
	path := ""
	for i, name := range names {
		path = join(path, name)
		s.pos.note(path, line)
		n := s.arrays[path]
		switch {
		case array && i == len(names)-1:
			s.arrays[path] = n + 1
			path = element(path, n)
			s.pos[path] = line
		case n > 0:
			path = element(path, n-1)
		}
	}
	if !array {
		// [a] may come after [a.b] made it: its own line is the better one.
		s.pos[path] = line
	}
	return path
}

// pair reads key = value inside the table.
func (s *scanner) pair(table string) {
	line := s.at
	path := table
	names := s.key()
	for i, name := range names {
		path = join(path, name)
		if first, ok := s.pos[path]; ok && i == len(names)-1 && len(path) <= maxPath {
			s.again = append(s.again, twice{path, first, line})
		}
		s.pos.note(path, line)
	}
	s.spaces()
	if s.accept('=') {
		s.value(path)
	}
}

// key reads a dotted key.
func (s *scanner) key() []string {
	var names []string
	for {
		s.spaces()
		var name string
		switch c := s.peek(); c {
		case '"', '\'':
			name = s.text()
		default:
			start := s.i
			for s.i < len(s.src) && !strings.ContainsRune(" \t\r\n.=[]{},#\"'", rune(s.src[s.i])) {
				s.i++
			}
			name = s.src[start:s.i]
		}
		names = append(names, name)
		s.spaces()
		if !s.accept('.') {
			return names
		}
	}
}

// value steps over a value and notes the keys in it.
func (s *scanner) value(path string) {
	s.spaces()
	switch s.peek() {
	case '"', '\'':
		s.text()
	case '[':
		s.next()
		for i := 0; ; i++ {
			s.blank()
			if s.accept(']') || s.i >= len(s.src) {
				return
			}
			start := s.i
			s.pos.note(element(path, i), s.at)
			s.value(element(path, i))
			s.blank()
			s.accept(',')
			if s.i == start {
				return
			}
		}
	case '{':
		s.next()
		for {
			s.blank()
			if s.accept('}') || s.i >= len(s.src) {
				return
			}
			start := s.i
			s.pair(path)
			s.blank()
			s.accept(',')
			if s.i == start {
				return
			}
		}
	default: // number, boolean, date: none of them holds one of these
		for s.i < len(s.src) && !strings.ContainsRune(",]}#\r\n", rune(s.src[s.i])) {
			s.i++
		}
	}
}

// text reads any of the four kinds of string and returns what is in it; escapes are
// resolved as far as keys can have them.
func (s *scanner) text() string {
	quote := s.src[s.i]
	triple := strings.Repeat(string(quote), 3)
	if strings.HasPrefix(s.src[s.i:], triple) {
		s.i += 3
		start := s.i
		for s.i < len(s.src) && !strings.HasPrefix(s.src[s.i:], triple) {
			if s.src[s.i] == '\\' && quote == '"' {
				s.next()
			}
			s.next()
		}
		end := s.i
		// Up to two quotes may stand before the closing three.
		for s.i < len(s.src) && s.src[s.i] == quote {
			s.i++
		}
		return s.src[start:end]
	}
	s.next()
	start := s.i
	for s.i < len(s.src) && s.src[s.i] != quote && s.src[s.i] != '\n' {
		if s.src[s.i] == '\\' && quote == '"' {
			s.next()
		}
		s.next()
	}
	end := min(s.i, len(s.src))
	s.accept(quote)
	raw := s.src[start:end]
	if quote == '"' && strings.Contains(raw, `\`) {
		if name, err := strconv.Unquote(`"` + raw + `"`); err == nil {
			return name
		}
	}
	return raw
}
