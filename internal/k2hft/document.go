// Package k2hft reads configurations of K2HFTFUSE and K2HFTFUSESVR with their CHMPX
// sections (INI, YAML, JSON, a JSON string) and writes what ftfuse's TOML has for them.
//
// The facts about those programs are from their manual pages, their sample configurations
// and their behaviour as the sources of k2hftfuse 1.0.50 and chmpx 1.0 show it
// (github.com/yahoojapan).
package k2hft

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Errors of Convert.
var (
	// ErrSyntax is returned for text that is none of the formats.
	ErrSyntax = errors.New("cannot be read")
	// ErrSections is returned for a configuration with nothing in it to convert.
	ErrSections = errors.New("has neither a section K2HFTFUSE nor K2HFTFUSESVR")
)

// Names of sections.
const (
	secMain  = "K2HFTFUSE"
	secDir   = "K2HFTFUSE_RULE_DIR"
	secFile  = "K2HFTFUSE_RULE"
	secSvr   = "K2HFTFUSESVR"
	secDtor  = "K2HTPDTOR"
	secChm   = "GLOBAL"
	secNode  = "SVRNODE"
	secSlave = "SLVNODE"
)

// document is a configuration, whatever its format: sections in the order of the file,
// with a rule as a section of its own.
type document struct {
	name     string
	sections []*section
	spent    int // bytes of what was read, in each place that an alias or an INCLUDE puts it
}

// mostSpent is far more than any configuration has; aliases of aliases, and files that include
// each other twice, would multiply without end.
const mostSpent = 16 << 20

// spend notes that n bytes, and what keeps them, were read.
func (d *document) spend(n int) error {
	if d.spent += n + 16; d.spent > mostSpent {
		return fmt.Errorf("%w: with what is included, and what aliases stand for, it is larger than %d bytes", ErrSyntax, mostSpent)
	}
	return nil
}

type section struct {
	name    string
	line    int
	entries []*entry
}

// entry is one key with one value; a key that is repeated, or has a list, is several.
type entry struct {
	key    string // in capitals
	value  string
	line   int
	file   string   // "" : that of the document, else one that it includes
	filter *pattern // of ALLOW and DENY
	said   bool     // something in the output stands for it, or names it
}

// pattern is the value of ALLOW or DENY.
type pattern struct {
	text    string
	regex   bool    // else a literal; "" matches everything
	replace *string // as it was written, without its quotes
	guessed bool    // nothing but its looks says that it is a regular expression
}

// all returns the sections of that name.
func (d *document) all(name string) []*section {
	var all []*section
	for _, s := range d.sections {
		if s.name == name {
			all = append(all, s)
		}
	}
	return all
}

// one returns the first section of that name, or an empty one.
func (d *document) one(name string) *section {
	if all := d.all(name); len(all) > 0 {
		return all[0]
	}
	return &section{name: name}
}

func (d *document) has(name string) bool { return len(d.all(name)) > 0 }

// get returns the last entry of that key, as what the programs take for it, or nil.
func (s *section) get(key string) *entry {
	for i := len(s.entries) - 1; i >= 0; i-- {
		if s.entries[i].key == key {
			return s.entries[i]
		}
	}
	return nil
}

// value returns the value of key, or "".
func (s *section) value(key string) string {
	if e := s.get(key); e != nil {
		return e.value
	}
	return ""
}

// yes reports whether key is on; def where it is not there, or neither on nor off.
func (s *section) yes(key string, def bool) bool {
	switch strings.ToUpper(s.value(key)) {
	case "Y", "YES", "ON":
		return true
	case "N", "NO", "OFF":
		return false
	}
	return def
}

// where is how comments name an entry.
func (e *entry) where() string { return e.key + ", " + e.place() }

// place is the line, and the file where that is another one.
func (e *entry) place() string { return strings.TrimSpace(fmt.Sprintf("%s line %d", e.file, e.line)) }

// format is the syntax of a configuration.
type format string

const (
	formatINI  format = "INI"
	formatYAML format = "YAML"
	formatJSON format = "JSON"
)

// guess returns the format by the file's name, or else by what it begins with.
func guess(name string, text []byte) format {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".ini":
		return formatINI
	case ".yaml", ".yml":
		return formatYAML
	case ".json":
		return formatJSON
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line == "---":
			continue
		case line[0] == '{':
			return formatJSON
		case line[0] == '[' || strings.Contains(line, "="):
			return formatINI
		}
		return formatYAML
	}
	return formatINI
}

// parse reads a configuration. open reads what it includes.
func parse(name string, text []byte, open func(string) ([]byte, error)) (*document, error) {
	d := &document{name: name}
	var err error
	switch f := guess(name, text); f {
	case formatINI:
		err = d.parseINI(name, text, open, nil)
	default:
		err = d.parseYAML(text, f)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}
