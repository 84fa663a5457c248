package template

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestConversionsAgreeWithDate compares every conversion with GNU date, over random
// times and zones.
func TestConversionsAgreeWithDate(t *testing.T) {
	if _, err := exec.LookPath("date"); err != nil {
		t.Skip("no date(1) on this machine")
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var format strings.Builder
	for _, c := range Conversions {
		fmt.Fprintf(&format, "%d=%%%c|", c, c)
	}
	format.WriteString("%:z")
	l, _, msg := compileLayout(format.String())
	if msg != "" {
		t.Fatal(msg)
	}
	for _, name := range []string{"UTC", "Europe/Paris", "America/St_Johns", "Asia/Kathmandu"} {
		if _, err := os.Stat("/usr/share/zoneinfo/" + name); err != nil && name != "UTC" {
			t.Logf("no zone %s on this machine", name)
			continue
		}
		t.Setenv("TZ", name)
		z, err := LocalZone()
		if err != nil {
			t.Fatal(err)
		}
		loc, err := z.Location()
		if err != nil {
			t.Fatal(err)
		}
		c := timeCache{layout: l, zone: loc}
		var in, want strings.Builder
		for range 300 {
			s := rnd.Int64N(4102444800)
			fmt.Fprintf(&in, "@%d\n", s)
			want.Write(c.append(nil, s*1e9+5))
			want.WriteByte('\n')
		}
		cmd := exec.Command("date", "-f", "-", "+"+format.String())
		cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ="+name)
		cmd.Stdin = strings.NewReader(in.String())
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		got, ref := strings.Split(want.String(), "\n"), strings.Split(string(out), "\n")
		for i := range ref {
			if got[i] != ref[i] {
				t.Fatalf("%s:\n got  %s\n date %s", name, got[i], ref[i])
			}
		}
	}
}

func TestNanosecondsAreNotCached(t *testing.T) {
	l, _, msg := compileLayout("%S.%- %-")
	if msg != "" {
		t.Fatal(msg)
	}
	c := timeCache{layout: l, zone: time.UTC}
	for ns, want := range map[int64]string{
		1:                 "00.000000001 000000001",
		999_999_999:       "00.999999999 999999999",
		-1:                "59.999999999 999999999",
		61_000_000_020:    "01.000000020 000000020",
		-62_000_000_000:   "58.000000000 000000000",
		1_000_000_000_000: "40.000000000 000000000",
	} {
		for range 2 {
			if got := string(c.append(nil, ns)); got != want {
				t.Errorf("%d ns renders %q, want %q", ns, got, want)
			}
		}
	}
}

func TestZoneIsMadeAgainFromItsBytes(t *testing.T) {
	if _, err := os.Stat("/usr/share/zoneinfo/Europe/Paris"); err != nil {
		t.Skip("no zone files on this machine")
	}
	t.Setenv("TZ", ":Europe/Paris")
	z, err := LocalZone()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TZ", "UTC")
	loc, err := Zone{Name: z.Name, Data: append([]byte(nil), z.Data...)}.Location()
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_720_000_000, 0).In(loc)
	if _, offset := at.Zone(); offset != 7200 {
		t.Errorf("offset in summer is %d s, want 7200", offset)
	}
	if _, err := (Zone{Name: "x", Data: []byte("no zone")}).Location(); err == nil {
		t.Error("a zone of rubbish was taken")
	}
}
