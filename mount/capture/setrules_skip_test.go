package capture

import (
	"strings"
	"testing"
)

// TestRulesThatSkipEndTheLinesThatHaveBegun: what is skipped ended nobody's line, so that the
// first line after rules that transfer again was dropped with one that had been judged by its
// beginning, and half a line went to the groups of nobody's rule.
func TestRulesThatSkipEndTheLinesThatHaveBegun(t *testing.T) {
	own := Rule{Path: "f", Transfer: true, MaxLine: 10, Route: 7, Filter: denyAll("x")}
	for begun, want := range map[string]string{
		strings.Repeat("x", 40): "", // dropped by its beginning
		strings.Repeat("a", 40): strings.Repeat("a", 40),
		"half x":                "",
		"half ":                 "half ",
	} {
		r := newRig(t, Options{MaxHold: 20, Rules: []Rule{own}})
		r.start()
		h := r.writer("f")
		r.write(h, begun)
		r.drain()
		r.must(r.c.SetRules(r.ctx(), []Rule{{Path: "f"}}))
		r.drain()
		r.want("f", want)
		for _, s := range r.sealed() {
			if s.ID.Lane.Route != 7 {
				t.Errorf("%q went by route %d", begun, s.ID.Lane.Route)
			}
		}
		r.write(h, " not this\n")
		r.drain()
		r.must(r.c.SetRules(r.ctx(), []Rule{{Path: "f", Transfer: true}}))
		r.write(h, "whole\n")
		r.drain()
		r.want("f", want+"whole\n")
	}
}

// TestRulesThatSkipAtATakeoverEndTheLinesThatHaveBegun: what the next worker's rules skip kept the
// beginning of a line, which went out with what came long after it, by the route of nobody's rule.
func TestRulesThatSkipAtATakeoverEndTheLinesThatHaveBegun(t *testing.T) {
	own := Rule{Path: "f", Transfer: true, MaxLine: 10, Route: 7, Filter: denyAll("x")}
	for begun, want := range map[string]struct {
		out     string
		skipped int
	}{
		strings.Repeat("x", 40):          {"", 0}, // dropped by its beginning
		strings.Repeat("a", 40):          {strings.Repeat("a", 40), 0},
		strings.Repeat("a", 40) + "tail": {strings.Repeat("a", 40), 4},
		"half x":                         {"", 6},
		"half ":                          {"", 5},
	} {
		r := newRig(t, Options{MaxHold: 20, Rules: []Rule{own}})
		r.start()
		h := r.writer("f")
		r.write(h, begun)
		r.drain()
		r.o.Rules = []Rule{{Path: "f"}}
		r.takeOver(&h)
		r.write(h, " not this\n")
		r.drain()
		r.want("f", want.out)
		r.wantRule(0, RuleStats{SkippedWrites: 1 + uint64(min(want.skipped, 1)), SkippedBytes: uint64(len(" not this\n") + want.skipped)})
		for _, s := range r.sealed() {
			if s.ID.Lane.Route != 7 && s.Payload > 0 {
				t.Errorf("%q: %d bytes went by route %d", begun, s.Payload, s.ID.Lane.Route)
			}
		}
		r.must(r.c.SetRules(r.ctx(), []Rule{{Path: "f", Transfer: true}}))
		r.write(h, "whole\n")
		r.drain()
		r.want("f", want.out+"whole\n")
	}
}

// TestRulesThatSkipAtAStartTakeNothingOfALineThatHasBegun: it went to all groups, whatever the rule
// said by which it had been accepted, and no filter had seen it.
func TestRulesThatSkipAtAStartTakeNothingOfALineThatHasBegun(t *testing.T) {
	r := newRig(t, Options{Rules: []Rule{{Path: "f", Transfer: true, Route: 7, Filter: denyAll("x")}}})
	r.start()
	r.write(r.writer("f"), "half x")
	r.drain()
	r.o.Rules = []Rule{{Path: "f"}}
	r.restart()
	r.want("f", "")
	r.wantRule(0, RuleStats{SkippedWrites: 1, SkippedBytes: 6})
}
