package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ftfuse/bench/rig"
)

// offLines is numbered lines as a program writes them while nothing is mounted.
func offLines(name string, from, n int) []byte {
	var b bytes.Buffer
	for i := from; i < from+n; i++ {
		fmt.Fprintf(&b, "%s line %d, written while nothing was mounted\n", name, i)
	}
	return b.Bytes()
}

// leave writes data to a file below the mount point of a mount that is not there.
func leave(t *testing.T, p *rig.Pair, name string, data []byte) {
	t.Helper()
	if rig.OnFUSE(p.Point()) {
		t.Fatalf("%s is mounted", p.Point())
	}
	must(t, os.MkdirAll(filepath.Dir(p.In(name)), 0o755))
	f, err := os.OpenFile(p.In(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(t, err)
	_, err = f.Write(data)
	must(t, errors.Join(err, f.Close()))
}

// under opens the directory below the mount point, which shows it while it is mounted, too.
func under(t *testing.T, p *rig.Pair) (path func(name string) string) {
	t.Helper()
	d, err := os.Open(p.Point())
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return func(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name) }
}

// gone waits until there is no file at path.
func gone(t *testing.T, path string) {
	t.Helper()
	eventually(t, patience, func() error {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there (%v)", path, err)
		}
		return nil
	})
}

// What programs wrote while nothing was mounted arrives, each byte once and before what they
// write afterwards, and the files are removed.
func TestFilesWrittenWhileNothingWasMountedArriveOnce(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		see := under(t, p)
		want := map[string][]byte{
			"app.log":           append(offLines("app", 0, 3000), "no end"...),
			"deep/er/large.log": offLines("large", 0, 150_000),
			"binary":            {0, 1, 2, '\r', '\n', 0xff, 0, 0},
		}
		for name, data := range want {
			leave(t, p, name, data)
		}
		leave(t, p, "empty", nil)
		must(t, os.Symlink("/etc/passwd", p.In("link")))
		c.start(t, p)
		f, err := os.OpenFile(p.In("app.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		must(t, err)
		_, err = f.WriteString(" of it\nmounted\n")
		must(t, errors.Join(err, f.Close()))
		want["app.log"] = append(want["app.log"], " of it\nmounted\n"...)
		for name, data := range want {
			arrives(t, p.Out(name), data)
			gone(t, see(name))
		}
		stop(t, p)
		for name, data := range want {
			same(t, p.Out(name), data)
		}
		if _, err := os.Lstat(p.Out("link")); err == nil {
			t.Error("a link was followed")
		}
		start(t, p) // knows nothing any more, and takes nothing again
		stop(t, p)
		same(t, p.Out("app.log"), want["app.log"])
	})
}

// A program has its file open from before the mount, and goes on writing to it: while it is
// mounted, while the process that serves is killed, and while nothing is mounted again.
func TestAProgramThatOpenedItsFileBeforeTheMount(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		see := under(t, p)
		must(t, os.MkdirAll(p.In("logs"), 0o755))
		f, err := os.OpenFile(p.In("logs/app.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		must(t, err)
		defer f.Close()
		var want []byte
		write := func(n int) {
			data := offLines("app", bytes.Count(want, []byte("\n")), n)
			_, err := f.Write(data)
			must(t, err)
			want = append(want, data...)
		}
		write(1000)
		c.start(t, p)
		arrives(t, p.Out("logs/app.log"), want)
		write(1) // nobody is told of but by the watch
		arrives(t, p.Out("logs/app.log"), want)
		ready := p.MountRole.Readies()
		must(t, p.MountRole.KillWorker())
		write(1000)
		must(t, p.MountRole.ReadyAgain(t.Context(), ready+1))
		write(1000)
		arrives(t, p.Out("logs/app.log"), want)
		for range 2 {
			must(t, p.MountRole.Stop(patience))
			write(1000)
			c.startMount(t, p)
			arrives(t, p.Out("logs/app.log"), want)
		}
		must(t, p.MountRole.Kill())
		write(1000)
		c.startMount(t, p)
		write(2)
		arrives(t, p.Out("logs/app.log"), want)
		if st, err := os.Stat(see("logs/app.log")); err != nil || st.Size() != int64(len(want)) {
			t.Errorf("the file that a program has open: %v %v, want %d bytes", st, err, len(want))
		}
		must(t, f.Close())
		gone(t, see("logs/app.log"))
		stop(t, p)
		same(t, p.Out("logs/app.log"), want)
	}, "open", "write")
}

// The mount is killed at each step of taking a file in. What arrives is each byte once.
func TestKilledWhileFilesAreTakenIn(t *testing.T) {
	steps := []string{
		"capture/seal", "queue/commit-before", "queue/commit-after", "capture/committed", "capture/fed",
		"offline/taken", "offline/punching", "offline/punched", "offline/whole", "offline/looked", "offline/aside", "offline/removed",
	}
	for _, step := range steps {
		for n := 1; n < 9; n += 2 {
			if slices.Contains([]string{"offline/whole", "offline/looked", "offline/aside", "offline/removed"}, step) && n > 3 {
				continue
			}
			t.Run(fmt.Sprintf("%s@%d", step, n), func(t *testing.T) {
				p := newPair(t)
				see := under(t, p)
				p.MountTop = "[mount.queue]\nmax_bytes = \"8MiB\"" // 1 MiB is fed at once
				want := map[string][]byte{"a.log": offLines("a", 0, 40_000), "b.log": append(offLines("b", 0, 120_000), "no end"...), "c.log": offLines("c", 0, 10)}
				for name, data := range want {
					leave(t, p, name, data)
				}
				startReceive(t, p)
				must(t, p.StartMount(t.Context(), "FTFUSE_FAILPOINTS="+step+"=kill@"+fmt.Sprint(n))) // the holder starts another worker
				_, err := p.MountRole.WaitLog(t.Context(), "ended by signal")
				must(t, err)
				for name, data := range want {
					arrives(t, p.Out(name), data)
					gone(t, see(name))
				}
				stop(t, p)
				for name, data := range want {
					same(t, p.Out(name), data)
				}
			})
		}
	}
}

// Killed with a file set aside that somebody had renamed over one that was to be removed
// (offline/foreign): it is taken once, also where its name is taken by now.
func TestKilledBeforeAnotherFileIsPutBack(t *testing.T) {
	for name, later := range map[string][]byte{"its name is free": nil, "its name is taken": offLines("later", 0, 10)} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			p.Mount = "holder_timeout = \"0s\""
			see := under(t, p)
			one, other := offLines("one", 0, 100), offLines("other", 0, 50_000)
			leave(t, p, "app.log", one)
			must(t, os.WriteFile(p.Point()+".other", other, 0o644))
			startReceive(t, p)
			must(t, p.StartMount(t.Context(), "FTFUSE_FAILPOINTS=offline/aside=kill"))
			<-p.MountRole.Done()
			must(t, os.Rename(p.Point()+".other", see(".ftfuse-removing~app.log")))
			if later != nil {
				must(t, os.WriteFile(see("app.log"), later, 0o644))
			}
			startMount(t, p)
			want := slices.Concat(one, other, later)
			arrives(t, p.Out("app.log"), want)
			gone(t, see("app.log"))
			gone(t, see(".ftfuse-removing~app.log"))
			stop(t, p)
			same(t, p.Out("app.log"), want)
		})
	}
}

// Killed at random moments while much is taken in and programs go on writing to it.
func TestKilledAtRandomWhileFilesAreTakenIn(t *testing.T) {
	p := newPair(t)
	see := under(t, p)
	f, err := os.OpenFile(p.In("app.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(t, err)
	defer f.Close()
	want := offLines("app", 0, 400_000)
	_, err = f.Write(want)
	must(t, err)
	startReceive(t, p)
	startMount(t, p)
	for i := range kills() * 2 {
		more := offLines("app", 400_000+i*1000, 1000)
		_, err := f.Write(more)
		must(t, err)
		want = append(want, more...)
		if i%2 == 0 {
			grows(t, p.Out("app.log"), rand.Int64N(30_000))
			must(t, p.MountRole.Kill())
			startMount(t, p)
		} else {
			ready := p.MountRole.Readies()
			must(t, p.MountRole.KillWorker())
			must(t, p.MountRole.ReadyAgain(t.Context(), ready+1))
		}
	}
	must(t, f.Close())
	arrives(t, p.Out("app.log"), want)
	gone(t, see("app.log"))
	stop(t, p)
	same(t, p.Out("app.log"), want)
}

// offline = "keep" takes the bytes once and leaves the files as they are; "ignore" leaves all.
func TestOfflineKeepAndIgnore(t *testing.T) {
	p := newPair(t)
	p.Mount = `offline = "keep"`
	want := offLines("app", 0, 5000)
	leave(t, p, "app.log", want)
	start(t, p)
	arrives(t, p.Out("app.log"), want)
	stop(t, p)
	same(t, p.In("app.log"), want)
	for i := range 3 {
		more := offLines("app", 5000+i*10, 10)
		leave(t, p, "app.log", more)
		want = append(want, more...)
		must(t, os.Rename(p.In("app.log"), p.In("app.log.new"))) // the name is not what it is known by
		must(t, os.Rename(p.In("app.log.new"), p.In("app.log")))
		start(t, p)
		arrives(t, p.Out("app.log"), want)
		stop(t, p)
	}
	same(t, p.In("app.log"), want)
	same(t, p.Out("app.log"), want)
	p.Mount = `offline = "ignore"`
	leave(t, p, "app.log", offLines("app", 6000, 10))
	leave(t, p, "other.log", offLines("other", 0, 10))
	start(t, p)
	stop(t, p)
	same(t, p.Out("app.log"), want)
	if _, err := os.Stat(p.Out("other.log")); err == nil {
		t.Error(`offline = "ignore" took a file`)
	}
	if got := read(t, p.In("other.log")); len(got) == 0 {
		t.Error(`offline = "ignore" changed a file`)
	}
}

// A file that is written anew in the place of one that was taken, in the same inode or in
// another, is another file; one that rules do not transfer is left alone.
func TestFilesWrittenAnewAreTakenAnew(t *testing.T) {
	p := newPair(t)
	p.Mount = `offline = "keep"`
	p.Rules = "[[mount.rule]]\npath = \"private/**\"\ntransfer = false\n"
	leave(t, p, "private/x", []byte("secret\n"))
	one, two, three := offLines("one", 0, 100), offLines("two", 0, 200), offLines("three", 0, 3)
	leave(t, p, "app.log", one)
	start(t, p)
	arrives(t, p.Out("app.log"), one)
	stop(t, p)
	must(t, os.Truncate(p.In("app.log"), 0))
	leave(t, p, "app.log", two) // longer than before
	start(t, p)
	want := append(bytes.Clone(one), two...)
	arrives(t, p.Out("app.log"), want)
	stop(t, p)
	must(t, os.Truncate(p.In("app.log"), 0))
	leave(t, p, "app.log", two[:len(two)/2]) // as before, and shorter
	start(t, p)
	want = append(want, two[:len(two)/2]...)
	arrives(t, p.Out("app.log"), want)
	stop(t, p)
	must(t, os.Remove(p.In("app.log"))) // ext4 gives the inode to the next file
	leave(t, p, "app.log", append(bytes.Clone(two), three...))
	start(t, p)
	want = append(append(want, two...), three...)
	arrives(t, p.Out("app.log"), want)
	stop(t, p)
	same(t, p.Out("app.log"), want)
	if _, err := os.Stat(p.Out("private/x")); err == nil {
		t.Error("a file was taken that the rules do not transfer")
	}
	same(t, p.In("private/x"), []byte("secret\n"))
}

// The mount point of one mount lies below that of another: what the outer one had captured was
// taken in by the inner one, stood twice, and was removed from the outer one.
func TestWhatAnotherMountCapturedIsNotTakenIn(t *testing.T) {
	p := newPair(t)
	start(t, p)
	must(t, os.Mkdir(p.In("inner"), 0o755))
	outer, inner := offLines("outer", 0, 100), offLines("inner", 0, 10)
	must(t, os.WriteFile(p.In("inner/a.log"), outer, 0o644))
	arrives(t, p.Out("inner/a.log"), outer)
	state := filepath.Join(p.Dir, "inner")
	must(t, os.Mkdir(state, 0o755))
	file := filepath.Join(p.Dir, "inner.toml")
	text := fmt.Sprintf("host = \"inner\"\nstate_dir = %q\n[mount]\npoint = %q\n[[mount.forward]]\nprimary = [%q]\n", state, p.In("inner"), p.Addr)
	must(t, os.WriteFile(file, []byte(text), 0o644))
	if out, _, code := ftfuse(t, "check", "-c", file); code != 0 || !strings.Contains(out, "lies on another mount of ftfuse") {
		t.Errorf("check says %q (%d), and nothing of the outer mount", out, code)
	}
	r, err := rig.Start(bin, "mount", file, roleLog(t))
	must(t, err)
	t.Cleanup(func() { _ = r.Kill(); _ = unix.Unmount(p.In("inner"), unix.MNT_DETACH) })
	must(t, r.Ready(t.Context()))
	if log := strings.Join(r.Log(), "\n"); !strings.Contains(log, "lies on another mount of ftfuse") {
		t.Errorf("the log says nothing of the outer mount:\n%s", log)
	}
	must(t, os.WriteFile(p.In("inner/a.log"), inner, 0o644))
	got := filepath.Join(p.OutDir(), "inner", "a.log")
	arrives(t, got, inner)
	must(t, r.Stop(patience))
	if _, err := os.Stat(p.In("inner/a.log")); err != nil {
		t.Errorf("the outer mount has lost its file: %v", err)
	}
	stop(t, p)
	same(t, got, inner)
	same(t, p.Out("inner/a.log"), outer)
}
