package mountinfo

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOnReadsTheList(t *testing.T) {
	const text = `24 1 0:22 / /proc rw,nosuid - proc proc rw
90 24 0:51 / /a\040b\134c rw shared:1 - tmpfs tmpfs rw
91 90 0:52 / /a\040b\134c rw,nosuid shared:2 master:3 - fuse.ftfuse /etc/a\040b.toml rw,user_id=0
92 24 0:53 / /a
`
	on := func(point string) []Mount { return parse(text, func(at string, _ Mount) bool { return at == point }) }
	if got, want := on(`/a b\c`), []Mount{{24, "0:51", "tmpfs", "tmpfs"}, {90, "0:52", "fuse.ftfuse", "/etc/a b.toml"}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := on("/a"); got != nil {
		t.Errorf("a line without a type: %v", got)
	}
	if all, err := On("/proc"); err != nil || len(all) == 0 || all[len(all)-1].Type != "proc" {
		t.Errorf("/proc is %v, %v", all, err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc", &st); err != nil {
		t.Fatal(err)
	}
	if all, err := Of(uint64(st.Dev)); err != nil || len(all) == 0 || all[0].Type != "proc" {
		t.Errorf("the device of /proc is %v, %v", all, err)
	}
}
