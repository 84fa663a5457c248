package sink

import "ftfuse/internal/record"

// flagNames keeps the names of the flags that were asked for last: most lines have the same.
type flagNames struct {
	flags uint16
	names []string
}

func (f *flagNames) of(flags uint16) []string {
	if flags != f.flags || f.names == nil {
		f.flags, f.names = flags, record.FlagNames(flags)
	}
	return f.names
}

// objects appends a JSON object for each line of the record, and one for a record that has no
// lines (binary mode, or an end without bytes). Each piece of a long line is an object of its own, with a flag, since half
// an object would be none.
func (pl *planner) objects(pf *planFile, o *out, rec *record.Record) {
	r := pl.renderers[o.index].format
	switch {
	case !pf.begun:
		pf.begun = true
		pf.lead = lead{ends: true}
	case pf.after.open: // of another output of the same file
		pl.copy(pf, newline)
	}
	pl.scratch = r.AppendBefore(pl.scratch[:0], &pl.vals)
	for rest, first := rec.Data, true; first || len(rest) > 0; first = false {
		line, eol, tail := rest, newline, rest[len(rest):]
		if rec.Flags&record.Binary == 0 {
			line, eol, tail, _ = cutLine(rest)
		}
		rest = tail
		pl.vals.Flags = pl.names.of(record.LineFlags(rec.Flags, first, len(rest) == 0))
		pl.suffix = r.AppendObject(pl.suffix[:0], &pl.vals, line)
		pl.copy(pf, pl.scratch)
		pl.copy(pf, pl.suffix)
		pl.copy(pf, eol)
		pl.vals.Number++
	}
	pf.after = lineState{}
}
