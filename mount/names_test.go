package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"
)

// script is a series of operations below dir. Each step's outcome goes to out, so that
// two file systems can be compared.
func script(dir string) (out []string) {
	p := func(name string) string { return filepath.Join(dir, name) }
	step := func(what string, err error) {
		var errno syscall.Errno
		if errors.As(err, &errno) {
			out = append(out, what+": "+errno.Error())
		} else if err != nil {
			out = append(out, what+": "+strings.ReplaceAll(err.Error(), dir, ""))
		} else {
			out = append(out, what+": ok")
		}
	}
	put := func(name, data string, flags int) {
		f, err := os.OpenFile(p(name), flags, 0o640)
		if err == nil {
			_, err = f.WriteString(data)
			err = errors.Join(err, f.Close())
		}
		step(fmt.Sprintf("write %q", name), err)
	}
	create := os.O_WRONLY | os.O_CREATE
	put("a", "one\n", create|os.O_EXCL)
	put("a", "two\n", create|os.O_EXCL)
	put("a", "two\n", create|os.O_APPEND)
	put("a", "new\n", create|os.O_TRUNC)
	put("no/a", "x", create)
	put("odd\nname \xff\xfe", "x\n", create)
	put(strings.Repeat("n", 255), "x\n", create)
	put(strings.Repeat("n", 256), "x\n", create)
	step("mkdir d", os.Mkdir(p("d"), 0o750))
	step("mkdir d again", os.Mkdir(p("d"), 0o750))
	step("mkdir a", os.Mkdir(p("a"), 0o750))
	step("mkdir deep", os.MkdirAll(p("d/e/f/g"), 0o755))
	put("d/e/f/g/file", "deep\n", create)
	put("d", "x", os.O_WRONLY)
	put("a/b", "x", create)
	step("rmdir d not empty", syscall.Rmdir(p("d")))
	step("rmdir a file", syscall.Rmdir(p("a")))
	step("unlink a directory", syscall.Unlink(p("d/e")))
	step("unlink nothing", syscall.Unlink(p("nothing")))
	step("rename a", os.Rename(p("a"), p("b")))
	step("rename nothing", os.Rename(p("a"), p("c")))
	put("a", "again\n", create)
	step("rename over", os.Rename(p("a"), p("b")))
	step("rename to itself", os.Rename(p("b"), p("b")))
	step("rename a directory", os.Rename(p("d/e"), p("moved")))
	step("rename file over directory", syscall.Rename(p("b"), p("moved")))
	step("rename directory over file", syscall.Rename(p("moved"), p("b")))
	step("rename directory below itself", syscall.Rename(p("moved"), p("moved/f/x")))
	step("mkdir empty", os.Mkdir(p("empty"), 0o700))
	step("rename over empty directory", syscall.Rename(p("moved"), p("empty")))
	step("rename over full directory", func() error { os.Mkdir(p("m2"), 0o755); return syscall.Rename(p("m2"), p("empty")) }())
	put("empty/f/g/second", "2\n", create)
	step("chmod", os.Chmod(p("b"), 0o4755))
	step("chmod directory", os.Chmod(p("d"), 0o2711))
	step("chown", os.Chown(p("b"), 1234, 4321))
	step("chown directory", os.Chown(p("d"), 1234, 4321))
	put("d/inherits", "group\n", create)
	step("mkdir inherits", os.Mkdir(p("d/sub"), 0o755))
	step("utimes", os.Chtimes(p("b"), time.Unix(1e9, 5), time.Unix(1e9+7, 123456789)))
	step("utimes directory", os.Chtimes(p("d"), time.Unix(1e9, 5), time.Unix(1e9+9, 0)))
	step("truncate nothing", os.Truncate(p("nothing"), 5))
	step("truncate directory", os.Truncate(p("d"), 5))
	step("mknod", syscall.Mknod(p("node"), syscall.S_IFREG|0o600, 0))
	step("mknod again", syscall.Mknod(p("node"), syscall.S_IFREG|0o600, 0))
	put("gone", "x\n", create)
	step("unlink", os.Remove(p("gone")))
	return append(out, listing(dir)...)
}

// listing describes everything below dir.
func listing(dir string) (out []string) {
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		st := fi.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%q %v nlink=%d %d:%d", rel, fi.Mode(), st.Nlink, st.Uid, st.Gid)
		if !fi.IsDir() {
			data, err := os.ReadFile(path)
			line += fmt.Sprintf(" size=%d %q %v", fi.Size(), data, err)
		}
		if fi.ModTime().Year() < 2010 {
			line += " " + fi.ModTime().UTC().String()
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		out = append(out, err.Error())
	}
	sort.Strings(out)
	return out
}

func compare(t *testing.T, what string, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("%s:\n  here  %s\n  there %s", what, g, w)
		}
	}
}

func TestNamespaceIsAsOnExt4AndSurvivesRemountAndKill(t *testing.T) {
	r := newRig(t, "")
	ext4 := filepath.Join(t.TempDir(), "ext4")
	if err := os.Mkdir(ext4, 0o755); err != nil {
		t.Fatal(err)
	}
	compare(t, "ftfuse and ext4", script(r.point), script(ext4))
	before := listing(r.point)
	r.stop()
	r.start()
	compare(t, "after a remount", listing(r.point), before)
	r.kill()
	r.start()
	compare(t, "after a kill", listing(r.point), before)
}

func TestWhatTheMountRefuses(t *testing.T) {
	r := newRig(t, "")
	if err := os.WriteFile(r.path("f"), []byte("x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"symlink": syscall.Symlink("f", r.path("l")),
		"link":    syscall.Link(r.path("f"), r.path("l")),
		"fifo":    syscall.Mkfifo(r.path("p"), 0o600),
		"device":  syscall.Mknod(r.path("c"), syscall.S_IFCHR|0o600, 1<<8|3),
	} {
		if err != syscall.EPERM {
			t.Errorf("%s: %v, want EPERM", what, err)
		}
	}
	f, err := os.OpenFile(r.path("f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_WRITE|syscall.PROT_READ, syscall.MAP_SHARED); err != syscall.ENODEV {
		t.Errorf("shared writable mmap: %v, want ENODEV", err)
	}
	if err := syscall.Fallocate(int(f.Fd()), 1, 0, 1<<20); err != syscall.EOPNOTSUPP {
		t.Errorf("fallocate with keep size: %v, want EOPNOTSUPP", err)
	}
}

func TestFilesPutIntoTheTreeByHandAreHiddenAndKept(t *testing.T) {
	r := newRig(t, "")
	r.stop()
	tree := filepath.Join(r.dir, "state", "mount", "tree")
	if err := os.WriteFile(filepath.Join(tree, "stranger"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	r.launch()
	r.awaitLog("stranger")
	r.awaitLog("msg=ready")
	for _, name := range []string{"stranger", "link"} {
		if _, err := os.Lstat(r.path(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s shows: %v", name, err)
		}
		if err := os.WriteFile(r.path(name), []byte("x"), 0o644); err == nil {
			t.Errorf("%s was replaced", name)
		}
	}
	if err := os.WriteFile(r.path("mine"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(r.path("mine"), r.path("stranger")); !errors.Is(err, syscall.EPERM) {
		t.Errorf("rename over a stranger: %v, want EPERM", err)
	}
	if names, _ := os.ReadDir(r.point); len(names) != 1 {
		t.Errorf("%v", names)
	}
	if b, err := os.ReadFile(filepath.Join(tree, "stranger")); string(b) != "x" || err != nil {
		t.Errorf("the stranger is %q, %v", b, err)
	}
}

// TestThousandsOfFiles, and their listing in parts.
func TestThousandsOfFiles(t *testing.T) {
	r := newRig(t, "")
	n := soak(2000, 10_000) // as e2e does with the built binary
	for i := range n {
		if err := os.WriteFile(r.path(fmt.Sprintf("file-%05d", i)), []byte(fmt.Sprintf("line %d\n", i)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d, err := os.Open(r.point)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for part := 0; ; part++ {
		names, err := d.Readdirnames(700)
		for _, name := range names {
			if seen[name] {
				t.Fatalf("%s twice", name)
			}
			seen[name] = true
		}
		if err != nil {
			break
		}
		if part == 3 { // changes meanwhile neither hide nor repeat the others
			for i := range 100 {
				os.Remove(r.path(fmt.Sprintf("file-%05d", i)))
				os.WriteFile(r.path(fmt.Sprintf("new-%05d", i)), nil, 0o644)
			}
		}
	}
	d.Close()
	for i := 100; i < n; i++ {
		if !seen[fmt.Sprintf("file-%05d", i)] {
			t.Fatalf("file-%05d is missing in the listing", i)
		}
	}
	r.stop()
	if os.Getenv("FTFUSE_TEST_PROFILE") != "" {
		return
	}
	got := r.delivered()
	for i := range n {
		if name := fmt.Sprintf("file-%05d", i); got[name] != fmt.Sprintf("line %d\n", i) {
			t.Fatalf("%s: %q", name, got[name])
		}
	}
	r.start()
	if names, err := os.ReadDir(r.point); err != nil || len(names) != n {
		t.Fatalf("%d names after a restart, %v", len(names), err)
	}
}

func TestRulesDecideByTheOpenedPath(t *testing.T) {
	r := newRig(t, "[[mount.rule]]\npath = \"logs/*.tmp\"\ntransfer = false\n[[mount.rule]]\npath = \"logs/**\"\n")
	if err := os.Mkdir(r.path("logs"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"logs/a", "logs/b.tmp", "other", "logs/odd\n\xff"} {
		if err := os.WriteFile(r.path(name), []byte(name+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r.stop()
	got := r.delivered()
	if len(got) != 3 || got["other"] != "other\n" || got["logs/a"] != "logs/a\n" || got["logs/odd\n\xff"] != "logs/odd\n\xff\n" {
		t.Fatalf("%q", got)
	}
}
