package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/BurntSushi/toml"
)

// MaxFile is the size in bytes beyond which a configuration file is refused unread.
const MaxFile = 1 << 20

// Load reads, completes and validates the file at path. The error is an *Error.
func Load(path string, overrides ...Override) (*Config, error) {
	data, err := Read(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data, overrides...)
}

// Read returns the text of the file at path, for Parse. The error is an *Error.
func Read(path string) ([]byte, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, &Error{Problems: []*Problem{{
			Kind: ErrRead, File: path, What: fmt.Sprintf("read the configuration: %v", err),
			Fix: "name another with -c FILE or $" + FileEnv,
		}}}
	}
	return data, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxFile {
		return nil, fmt.Errorf("larger than %d bytes", MaxFile)
	}
	return data, nil
}

// Parse completes and validates the configuration in data; name stands for the file
// in messages. The error is an *Error.
func Parse(name string, data []byte, overrides ...Override) (*Config, error) {
	var root map[string]any
	if _, err := toml.Decode(string(data), &root); err != nil {
		return nil, &Error{Problems: []*Problem{syntaxProblem(name, err)}}
	}
	pos, again := scan(string(data))
	ps := &problems{file: name, pos: pos}
	for _, t := range again {
		ps.list = append(ps.list, &Problem{
			Kind: ErrSyntax, File: name, Line: t.second, Key: plainKey(t.path), path: t.path,
			What: fmt.Sprintf("%s is there already, in line %d", plainKey(t.path), t.first), Fix: syntaxFix,
		})
	}
	c := defaultConfig()
	c.File, c.pos = name, ps.pos
	c.decode(&table{ps: ps, m: root})
	for _, o := range overrides {
		o(c, ps)
	}
	c.validate(ps)
	if err := ps.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// Override changes a configuration between reading and validating it, as the command
// line may.
type Override func(*Config, *problems)

// syntaxFix holds for what goes wrong most.
const syntaxFix = `write KEY = "VALUE" with text, sizes and durations in quotes, and each key and [section] once (https://toml.io)`

func syntaxProblem(name string, err error) *Problem {
	p := &Problem{Kind: ErrSyntax, File: name, Line: 1, Fix: syntaxFix}
	what := err.Error()
	var pe toml.ParseError
	if errors.As(err, &pe) {
		p.Line = max(pe.Position.Line, 1)
		p.Key = pe.LastKey
		if pe.Message != "" { // errors of the lexer carry only the long form
			what = pe.Message
		}
	}
	what = strings.TrimRight(strings.ReplaceAll(what, "\n", " "), ". ")
	p.What = "not valid TOML: " + what
	return p
}
