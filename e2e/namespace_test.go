package e2e

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"ftfuse/bench/rig"
)

// The namespace answers as ext4 does: the same script gives the same output on both.
func TestNamespaceAnswersAsExt4(t *testing.T) {
	eachCapture(t, namespaceAnswersAsExt4)
}

func namespaceAnswersAsExt4(t *testing.T, c capture, p *rig.Pair) {
	c.startMount(t, p)
	off := t.TempDir()
	for name, script := range map[string]string{
		"mkdir":  `mkdir d; mkdir d 2>/dev/null || echo exists; mkdir -p d/e/f; find . | sort`,
		"rmdir":  `mkdir full; echo x >full/f; rmdir full 2>/dev/null || echo not empty; rm full/f; rmdir full; ls`,
		"rename": `echo 1 >a; mv a b; ls; echo 2 >c; mv c b; ls; mkdir s; mv b s/b; find . | sort`,
		"mv dir": `mkdir -p x/y; echo 1 >x/y/f; mv x z; find . | sort`,
		"unlink": `echo 1 >a; rm a; ls -A; test -e a || echo gone`,
		// No sticky bit: bazil.org/fuse cannot answer with it (Attr.attr in its fuse.go); it is kept.
		"chmod":     `echo 1 >a; chmod 4640 a; stat -c %a a; mkdir d; chmod 2775 d; stat -c %a d`,
		"chown":     `echo 1 >a; chown 33:34 a; stat -c %u:%g a`,
		"touch":     `echo 1 >a; touch -d '2020-02-03 04:05:06.789 UTC' a; stat -c %Y a; stat -c %X a`,
		"truncate":  `seq 100 >a; truncate -s 0 a; stat -c %s a; echo new >>a; stat -c %s a`,
		"over":      `seq 1000 >a; echo short >a; cat a; stat -c %s a`,
		"readback":  `seq 1000 >a; tail -n 3 a; wc -l <a; head -c 5 a`,
		"open gone": `exec 3>>a; rm a; echo unseen >&3; ls -A; echo two >>a; cat a`,
		"long name": `n=$(printf '%0255d' 7); echo 1 >$n; ls | wc -c; { echo 2 >${n}8; } 2>/dev/null || echo too long`,
		"no file":   `cat none 2>/dev/null || echo none; rmdir none 2>/dev/null || echo none`,
		"excl":      `set -C; echo 1 >a; { echo 2 >a; } 2>/dev/null || echo exists; cat a`,
		"not dir":   `echo 1 >a; cat a/b 2>/dev/null || echo no; mkdir a/c 2>/dev/null || echo no`,
		"many":      `for i in $(seq 500); do : >f$i; done; ls | wc -l; rm f*; ls -A | wc -l`,
	} {
		t.Run(name, func(t *testing.T) {
			run := func(base string) string {
				return sh(t, `cd "$1"; mkdir "$2"; cd "$2"; umask 022; `+script, base, strings.ReplaceAll(name, " ", "-"))
			}
			if on, want := run(p.Point()), run(off); on != want {
				t.Errorf("on the mount:\n%son ext4:\n%s", on, want)
			}
		})
	}
	stop(t, p)
}

// What cannot be is refused with the errno that programs know how to take.
func TestRefusals(t *testing.T) {
	eachCapture(t, refusals)
}

func refusals(t *testing.T, c capture, p *rig.Pair) {
	c.startMount(t, p)
	sh(t, `echo x >>"$1"`, p.In("a.log"))
	if err := os.Symlink("a.log", p.In("s")); !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOSYS) && !errors.Is(err, syscall.ENOTSUP) {
		t.Errorf("symlink: %v, want it refused", err)
	}
	if err := os.Link(p.In("a.log"), p.In("l")); err == nil {
		t.Error("a hard link was made")
	}
	if err := syscall.Mkfifo(p.In("fifo"), 0o600); err == nil {
		t.Error("a fifo was made")
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(p.Point(), &st); err != nil || st.Blocks == 0 || st.Namelen != 255 {
		t.Errorf("statfs: %+v, %v", st, err)
	}
	stop(t, p)
}

// overwrite = "refuse" answers a write over captured bytes with EPERM and captures none
// of it; "append", the default, captures it as it comes.
func TestOverwriteOfCapturedBytes(t *testing.T) {
	for way, want := range map[string]string{"append": "0123456789\nXYZ\n", "refuse": "0123456789\n"} {
		t.Run(way, func(t *testing.T) {
			p := newPair(t)
			p.Mount = "overwrite = \"" + way + "\""
			start(t, p)
			sh(t, `echo 0123456789 >>"$1"`, p.In("a.log"))
			arrives(t, p.Out("a.log"), []byte("0123456789\n"))
			f, err := os.OpenFile(p.In("a.log"), os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt([]byte("XYZ\n"), 2)
			if (way == "refuse") != errors.Is(err, syscall.EPERM) {
				t.Errorf("a write over captured bytes: %v", err)
			}
			must(t, f.Close())
			arrives(t, p.Out("a.log"), []byte(want))
			stop(t, p)
			same(t, p.Out("a.log"), []byte(want))
		})
	}
}
