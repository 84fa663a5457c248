package capture

import (
	"runtime"
	"strings"
	"testing"

	"ftfuse/internal/filter"
	"ftfuse/mount/spool"
)

func growing(match, replace string) *filter.Filter {
	return filter.New(filter.Spec{Allow: []filter.Entry{entry(match, replace)}, Default: true})
}

// TestALineThatReplaceGrowsTooMuchIsCounted: its matches are taken out, the rest of it and all
// other lines come; also of one that is unterminated, and of one that goes out in pieces.
func TestALineThatReplaceGrowsTooMuchIsCounted(t *testing.T) {
	r := newRig(t, Options{MaxRewritten: 29, MaxHold: 20, Rules: []Rule{{Path: "*", Transfer: true, MaxLine: 10, Filter: growing("[0-9]", "secret!")}}})
	r.start()
	h, long := r.writer("f"), r.writer("g")
	r.write(h, "a1b\na1b2c3d4\nno\n1234e\r\n1234")
	r.write(long, "123456789x"+strings.Repeat("y1", 10)) // judged by its first ten bytes
	r.drain()
	r.write(h, "5678")
	h.End(r.meta())
	r.write(long, "z\n")
	r.drain()
	r.want("f", "asecret!b\nabcd\nno\n"+strings.Repeat("secret!", 4)+"e\r\n")
	r.want("g", "x"+strings.Repeat("y1", 10)+"z\n")
	r.wantRule(0, RuleStats{ReplacedLines: 5, OvergrownLines: 3})
}

// TestTheLinesOfAnOverwriteHaveTheLimitTogether: all of them are in one transaction.
func TestTheLinesOfAnOverwriteHaveTheLimitTogether(t *testing.T) {
	r := newRig(t, Options{MaxRewritten: 100, Rules: []Rule{{Path: "f", Transfer: true, MaxLine: 10, Filter: growing("x", strings.Repeat("y", 40))}}})
	r.start()
	h := r.writer("f")
	r.write(h, "old\n")
	r.drain()
	e := spool.Entry{File: h.Number(), Writer: h.Writer, Path: h.Path, PathID: h.PathID, PID: 1, Kind: spool.Write}
	data := "1x\n2x\n3x\n4x\n"
	for range 2 { // the next begins anew
		r.must(r.c.Overwrite(r.ctx(), h.Number(), e, []byte(data), 4))
	}
	y := strings.Repeat("y", 40)
	once := "1" + y + "\n2" + y + "\n3\n4\n"
	r.want("f", "old\n"+once+once)
	r.write(h, data) // each line has a transaction of its own, if need be
	r.drain()
	r.want("f", "old\n"+once+once+strings.ReplaceAll(data, "x", y))
	r.wantRule(0, RuleStats{ReplacedLines: 12, OvergrownLines: 4})
}

// TestALineOfAMiBThatReplaceGrowsNeedsNoGigabytes with the limit that is real.
func TestALineOfAMiBThatReplaceGrowsNeedsNoGigabytes(t *testing.T) {
	r := newRig(t, Options{Rules: []Rule{{Path: "f", Transfer: true, Filter: growing("([0-9])", strings.Repeat("$1", 1<<10))}}})
	r.start()
	h := r.writer("f")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 16 {
		r.write(h, strings.Repeat("1", 60<<10))
	}
	r.write(h, "end\n12\n")
	r.drain()
	runtime.ReadMemStats(&after)
	r.want("f", "end\n"+strings.Repeat("1", 1<<10)+strings.Repeat("2", 1<<10)+"\n")
	r.wantRule(0, RuleStats{ReplacedLines: 2, OvergrownLines: 1})
	if took := int64(after.HeapSys) - int64(before.HeapSys); took > 256<<20 {
		t.Errorf("the heap grew by %d MiB", took>>20)
	}
}
