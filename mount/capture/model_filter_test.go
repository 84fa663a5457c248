package capture

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"ftfuse/internal/filter"
)

// modelFilter goes by the first byte of a line and changes nothing else, so that it does not
// matter by how much of a line it is judged. on false: no filter.
func modelFilter(on bool) *filter.Filter {
	if !on {
		return nil
	}
	first := func(class, with string) filter.Entry {
		return filter.Entry{Pattern: regexp.MustCompile(`(?s)^` + class), Replace: &with}
	}
	return filter.New(filter.Spec{
		Deny:    []filter.Entry{{Pattern: regexp.MustCompile(`(?s)^[a-f]`)}},
		Allow:   []filter.Entry{first("[g-k]", ""), first("[l-n]", strings.Repeat("<$0>", 30))},
		Default: true,
	})
}

// expected is what the records of w have: its bytes, by the rule of its path.
func (m *model) expected(w *modelWriter) string {
	want := w.want.String()
	i := Match(m.o.Rules, w.path)
	if i < 0 || m.o.Rules[i].Filter == nil {
		return want
	}
	var b strings.Builder
	for line := range strings.Lines(want) {
		switch c := line[0]; {
		case c >= 'a' && c <= 'f':
		case c >= 'g' && c <= 'k':
			b.WriteString(line[1:])
		case c >= 'l' && c <= 'n':
			b.WriteString(strings.Repeat("<"+line[:1]+">", 30) + line[1:])
		default:
			b.WriteString(line)
		}
	}
	return b.String()
}

// rules1 sets other rules that mean the same, but for where records end and how far a line is
// held.
func (m *model) rules1() {
	rules := slices.Clone(m.o.Rules)
	for i := range rules {
		if rules[i].Filter != nil {
			rules[i].Filter = modelFilter(true)
		}
		rules[i].MaxLine = 1 + m.rnd.IntN(3000)
	}
	rules[0].MaxRecord = m.rnd.Int64N(1000)
	m.unhold()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	m.note(m.c.SetRules(ctx, rules))
	m.o.Rules = rules
}
