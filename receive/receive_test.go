package receive

import (
	"fmt"
	"strings"
	"testing"
)

func TestBytesArriveAsTheyCame(t *testing.T) {
	s := newSetup(t)
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	var want [2]strings.Builder
	for i := range 50 {
		var recs []rec
		for j := range 20 {
			line := fmt.Sprintf("line %d of batch %d\x00\xff\r\n", j, i)
			recs = append(recs, rec{host: "web", path: fmt.Sprintf("logs/app%d.log", j%2), data: line})
			want[j%2].WriteString(line)
		}
		f.add(recs...)
	}
	f.until(t, "final acks", f.allFinal)
	for i := range want {
		wantFile(t, s.out("web", "logs", fmt.Sprintf("app%d.log", i)), want[i].String())
	}
	st := x.r.Stats()
	if st.Batches != 50 || st.Records != 1000 || st.Generations != 0 || st.PossibleDoubles != 0 {
		t.Errorf("stats %+v", st)
	}
	x.end()
	x = start(t, s)
	f.add(rec{host: "web", path: "logs/app0.log", data: "after a restart\n"})
	f.until(t, "final acks", f.allFinal)
	wantFile(t, s.out("web", "logs", "app0.log"), want[0].String()+"after a restart\n")
	x.end()
}
