package mount

import (
	"ftfuse/config"
	"ftfuse/internal/filter"
	"ftfuse/mount/procs"
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

// asks is what the records of a rule tell of processes.
func asks(r *config.Rule) (ask procs.Ask) {
	for _, a := range r.Attributes {
		switch a {
		case config.AttributeExe:
			ask |= procs.Exe
		case config.AttributeCgroup:
			ask |= procs.Cgroup
		}
	}
	return ask
}
