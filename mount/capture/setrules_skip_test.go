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
