package e2e

import (
	"testing"

	"ftfuse/bench/rig"
)

// capture is one way that the bytes of programs come in.
type capture struct {
	name        string
	attribution string // of all paths
	failpoints  string // FTFUSE_FAILPOINTS of the mount
	passthrough bool   // the kernel must write, or the test is of something else
}

// captures are the ways that everything must work with: the kernel writes; the daemon
// writes, as a rule asks; the daemon writes, since the kernel is too old for more.
var captures = []capture{
	{name: "open", attribution: "open", passthrough: true},
	{name: "write", attribution: "write"},
	{name: "old-kernel", attribution: "open", failpoints: "kernel/no-passthrough=error"},
}

// eachCapture runs a test with a pair of its own for each capture, or for those that are
// named.
func eachCapture(t *testing.T, run func(t *testing.T, c capture, p *rig.Pair), names ...string) {
	t.Helper()
	needRoot(t)
	for _, c := range captures {
		wanted := len(names) == 0
		for _, n := range names {
			wanted = wanted || n == c.name
		}
		if wanted {
			t.Run(c.name, func(t *testing.T) { run(t, c, c.pair(t)) })
		}
	}
}

// pair is newPair for the capture.
func (c capture) pair(t *testing.T) *rig.Pair {
	t.Helper()
	p := newPair(t)
	p.Attribution = c.attribution
	if c.failpoints != "" {
		p.Env = append(p.Env, "FTFUSE_FAILPOINTS="+c.failpoints)
	}
	return p
}

// start starts both roles and makes sure that the capture is in force.
func (c capture) start(t *testing.T, p *rig.Pair) {
	t.Helper()
	start(t, p)
	c.check(t, p)
}

// startMount starts the mount and makes sure that the capture is in force.
func (c capture) startMount(t *testing.T, p *rig.Pair) {
	t.Helper()
	startMount(t, p)
	c.check(t, p)
}

func (c capture) check(t *testing.T, p *rig.Pair) {
	t.Helper()
	got, why := p.Captures(), p.MountRole.ReadyAttr("why")
	if c.passthrough && got != "passthrough" {
		t.Fatalf("capture %q is in force (%s), want passthrough: this test is of the kernel's writes", got, why)
	}
	if c.failpoints != "" && (got != "daemon" || why == "") {
		t.Fatalf("capture %q is in force (why: %q), want daemon and the reason", got, why)
	}
}
