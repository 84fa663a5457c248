package mount

import (
	"ftfuse/config"
	"ftfuse/internal/filter"
)

// lineFilter is what a rule says of its lines, nil if nothing.
func lineFilter(r *config.Rule) *filter.Filter {
	entries := func(all []config.Filter) (out []filter.Entry) {
		for _, f := range all {
			out = append(out, filter.Entry{Pattern: f.Match, Literal: f.Literal, Replace: f.Replace})
		}
		return out
	}
	return filter.New(filter.Spec{Deny: entries(r.Deny), Allow: entries(r.Allow), Default: r.Default == config.VerdictAllow})
}
