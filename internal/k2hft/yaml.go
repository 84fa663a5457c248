package k2hft

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// parseYAML reads YAML, and JSON as their parser takes it: with comments, and with single
// quotes.
func (d *document) parseYAML(text []byte, f format) error {
	if f == formatJSON {
		text = []byte(spaced(string(text)))
	}
	for documents := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var root yaml.Node
		err := documents.Decode(&root)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w as %s: %w", d.name, ErrSyntax, f, err)
		}
		if len(root.Content) == 0 {
			continue
		}
		if err := d.yamlTop(root.Content[0], f); err != nil {
			return err
		}
	}
}

// yamlTop reads the sections of one document.
func (d *document) yamlTop(top *yaml.Node, f format) error {
	if top.Tag == "!!null" {
		return nil // nothing between two ---
	}
	if top.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: %w as %s: sections are expected at the top", d.name, top.Line, ErrSyntax, f)
	}
	for i := 0; i+1 < len(top.Content); i += 2 {
		if err := d.yamlSection(strings.ToUpper(top.Content[i].Value), top.Content[i+1], 0); err != nil {
			return fmt.Errorf("%s:%w", d.name, err)
		}
	}
	return nil
}

// spaced replaces tabs before the first word of a line, which YAML does not allow.
func spaced(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		word := strings.TrimLeft(line, " \t")
		b.WriteString(strings.ReplaceAll(line[:len(line)-len(word)], "\t", " "))
		b.WriteString(word)
	}
	return b.String()
}

var errShape = errors.New("a mapping, or a list of mappings, is expected")

// deepest is how far lists and aliases are followed: an alias can stand inside its anchor.
const deepest = 8

// aliased returns what an alias stands for.
func aliased(n *yaml.Node) *yaml.Node {
	for range deepest {
		if n.Kind != yaml.AliasNode {
			break
		}
		n = n.Alias
	}
	return n
}

// yamlSection reads one section, or a list of them, depth lists deep.
func (d *document) yamlSection(name string, n *yaml.Node, depth int) error {
	if depth > deepest {
		return fmt.Errorf("%d: %w: %s: lists too deep", n.Line, ErrSyntax, name)
	}
	if err := d.spendNode(n, 0); err != nil {
		return fmt.Errorf("%d: %w", n.Line, err)
	}
	n = aliased(n)
	switch n.Kind {
	case yaml.SequenceNode:
		for _, x := range n.Content {
			if err := d.yamlSection(name, x, depth+1); err != nil {
				return err
			}
		}
		return nil
	case yaml.MappingNode:
	default:
		if n.Tag == "!!null" {
			return nil
		}
		return fmt.Errorf("%d: %w: %s: %w", n.Line, ErrSyntax, name, errShape)
	}
	s := &section{name: name, line: n.Line}
	d.sections = append(d.sections, s)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, v := strings.ToUpper(n.Content[i].Value), aliased(n.Content[i+1])
		if err := d.spendNode(v, listsInValues); err != nil {
			return fmt.Errorf("%d: %w", n.Content[i].Line, err)
		}
		switch key {
		case secDir, secFile:
			if err := d.yamlSection(key, v, depth+1); err != nil {
				return err
			}
		case "ALLOW", "DENY":
			s.yamlPatterns(key, v)
		default:
			s.entries = append(s.entries, &entry{key: key, value: scalar(v), line: n.Content[i].Line})
		}
	}
	return nil
}

// listsInValues is how deep the lists in a value are: patterns, each with a replacement.
const listsInValues = 2

// spendNode notes that n is read, with its lists down to depth.
func (d *document) spendNode(n *yaml.Node, depth int) error {
	n = aliased(n)
	if err := d.spend(len(n.Value)); err != nil || depth == 0 || n.Kind != yaml.SequenceNode {
		return err
	}
	for _, x := range n.Content {
		if err := d.spendNode(x, depth-1); err != nil {
			return err
		}
	}
	return nil
}

// scalar returns a value as text; a list of values with commas between.
func scalar(n *yaml.Node) string {
	if n = aliased(n); n.Kind != yaml.SequenceNode {
		return n.Value
	}
	all := make([]string, len(n.Content))
	for i, x := range n.Content {
		all[i] = aliased(x).Value
	}
	return strings.Join(all, ",")
}

// yamlPatterns reads a pattern, or a list of patterns and of [pattern, replacement].
func (s *section) yamlPatterns(key string, n *yaml.Node) {
	if n.Kind != yaml.SequenceNode {
		s.entries = append(s.entries, yamlPattern(key, n, nil))
		return
	}
	for _, x := range n.Content {
		x = aliased(x)
		switch {
		case x.Kind != yaml.SequenceNode:
			s.entries = append(s.entries, yamlPattern(key, x, nil))
		case len(x.Content) == 1:
			s.entries = append(s.entries, yamlPattern(key, x.Content[0], nil))
		case len(x.Content) > 1:
			s.entries = append(s.entries, yamlPattern(key, x.Content[0], x.Content[1]))
		}
	}
}

// yamlPattern reads one. A regular expression has quotes of its own inside the value; the
// published samples write it without, which nothing but its looks tells from a literal. A
// plain YAML word is a literal.
func yamlPattern(key string, n, replace *yaml.Node) *entry {
	e := &entry{key: key, value: scalar(n), line: n.Line}
	p := &pattern{text: e.value}
	if text, _, ok := quoted(e.value); ok {
		p.text, p.regex = text, true
	} else if n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 || replace != nil {
		p.regex = replace != nil || strings.ContainsAny(e.value, `\^$|?*+()[{`)
		p.guessed = p.regex
	}
	if replace != nil {
		text := scalar(replace)
		if inner, _, ok := quoted(text); ok {
			text = inner
		}
		e.value += ", " + text
		if text != "" {
			p.replace = &text
		}
	}
	e.filter = p
	return e
}
