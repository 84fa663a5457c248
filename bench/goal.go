package bench

import "fmt"

// goal is one thing that an issue's "Speed to reach" asks of a case, and what was reached.
type goal struct {
	what string  // what is compared
	got  float64 // ratio, lines a second, or milliseconds
	want float64
	unit string // "of …", "lines/s", "ms"; a time should be at most want, all else at least
	none bool   // the reference was not run
}

// String is the goal with its verdict.
func (g goal) String() string {
	switch {
	case g.none:
		return fmt.Sprintf("%s: want %.2f %s\t(not run)", g.what, g.want, g.unit)
	case g.unit == unitPerGB:
		word := "reached"
		if g.got > g.want {
			word = "MISSED"
		}
		return fmt.Sprintf("%s: %.2f %s\twant at most %.2f: %s", g.what, g.got, g.unit, g.want, word)
	case g.unit == "ms":
		return fmt.Sprintf("%s: %.1f %s\t%s", g.what, g.got, g.unit, atMost(g.got, g.want, g.unit))
	}
	format, word := "%s: %.2f %s\twant %.2f: %s", "reached"
	if g.unit == "lines/s" {
		format = "%s: %.0f %s\twant %.0f: %s"
	}
	if g.got < g.want {
		word = "MISSED"
	}
	return fmt.Sprintf(format, g.what, g.got, g.unit, g.want, word)
}

// atMost is the verdict on a figure that should be small.
func atMost(got, want float64, unit string) string {
	word := "reached"
	if got > want {
		word = "MISSED"
	}
	return fmt.Sprintf("want at most %.0f %s: %s", want, unit, word)
}

// goal is the p99 in milliseconds that issue 3 asks for.
func (p Paced) goal() float64 {
	if p.Half {
		return 30
	}
	return 15
}

// fairP99 is how many milliseconds one file at full speed may delay a line of another, by
// the 99th percentile of at least fairLines lines.
const (
	fairP99   = 20
	fairLines = 100
)

// What issue 4 asks of a relay between: the share of the direct rate that arrives, and the
// CPU seconds of the relay alone for a GB.
const (
	relayShare = 0.6
	relayPerGB = 0.5
	unitPerGB  = "CPU s/GB"
)

// goals are what the issues ask of the case on one way: issue 2 of write, issue 3 of open,
// issue 4 of a relay between.
func (c Case) goals(attr string) []goal {
	f := c.of(attr)
	if f == nil {
		return nil
	}
	ratio := func(what string, got float64, ref *Rate, of func(*Rate) float64, want float64, name string) goal {
		g := goal{what: what, want: want, unit: "of " + name, none: ref == nil}
		if ref != nil {
			g.got = got / of(ref)
		}
		return g
	}
	arrived := func(r *Rate) float64 { return r.LineS }
	accepted := func(r *Rate) float64 { return r.Accepted }
	var goals []goal
	add := func(g goal) {
		if g.want > 0 {
			goals = append(goals, g)
		}
	}
	switch {
	case attr == wayRelay && c.Mode == ModeBlock && c.Size == 128:
		add(ratio("arrived", f.LineS, c.Open, arrived, relayShare, "direct"))
		add(goal{what: "the relay alone", got: f.PerGB, want: relayPerGB, unit: unitPerGB})
	case attr == AttrWrite && c.Writers == 4 && c.Mode == ModeBlock:
		add(ratio("arrived", f.LineS, c.TailNC, arrived, map[int]float64{10: 0.2, 128: 0.33, 1024: 0.33, 4096: 0.33}[c.Size], "tail|nc"))
	case attr == AttrWrite && c.Writers == 4:
		add(ratio("arrived", f.LineS, c.Null, arrived, map[int]float64{10: 0.8, 128: 0.75, 1024: 0.7, 4096: 0.6}[c.Size], "empty FUSE"))
	case attr == AttrOpen && c.Mode == ModeBlock:
		add(ratio("arrived", f.LineS, c.TailNC, arrived, map[int]float64{128: 0.4, 1024: 0.4, 4096: 0.4}[c.Size], "tail|nc"))
	case attr == AttrOpen:
		if c.Writers == 1 {
			add(ratio("accepted", f.Accepted, c.Ext4, accepted, map[int]float64{10: 0.55, 128: 0.55, 1024: 0.7, 4096: 0.7}[c.Size], "plain file"))
		}
		add(goal{what: "arrived", got: f.LineS, want: map[int]float64{10: 700_000, 128: 650_000, 1024: 220_000, 4096: 60_000}[c.Size], unit: "lines/s"})
		// The issue names what Fluent Bit reached on the machine that these figures were set for.
		// On another machine the ratio is what can be compared.
		if ref := c.by("fluent-bit"); ref != nil {
			add(ratio("arrived", f.LineS, ref, arrived, map[int]float64{10: 700. / 533, 128: 650. / 620, 1024: 220. / 165, 4096: 60. / 47}[c.Size], "fluent-bit"))
		}
	}
	if attr == AttrOpen && f.Fair != nil && f.Fair.Lines >= fairLines {
		add(goal{what: "p99 until a line of another file is durable", got: f.Fair.P99, want: fairP99, unit: "ms"})
	}
	return goals
}
