package offline

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
)

// aside begins the name that a file has while it is removed; its own follows. Nobody else
// makes such names. One that is met was left by a process that was killed: it is put back.
const aside = ".ftfuse-removing~"

// Steps of a removal that a kill can come between.
var (
	fpLooked  = failpoint.New("offline/looked")  // the file was seen under its name, which it still has
	fpAside   = failpoint.New("offline/aside")   // what had its name is set aside; nobody has looked what that is
	fpForeign = failpoint.New("offline/foreign") // it is another file, which is to be put back
)

// isAside reports whether the last element of a path is that of what is set aside.
func isAside(at string) bool { return strings.HasPrefix(path.Base(at), aside) }

// proper is the path that a file would have were it, and were its directories, not set aside.
func proper(at string) string {
	return strings.ReplaceAll(strings.TrimPrefix(at, aside), "/"+aside, "/")
}

// older sorts paths, what is set aside first: what has its name by now was made after it.
func older(a, b string) int {
	switch x, y := isAside(a), isAside(b); {
	case x && !y:
		return -1
	case y && !x:
		return 1
	}
	return strings.Compare(a, b)
}

// putBack gives what was set aside its name back, and returns the name that it has then:
// the one that it had where that is another's by now. Other names are returned as they are.
func putBack(dir *os.File, name string) string {
	if !isAside(name) || rename(dir, name, name[len(aside):]) != nil {
		return name
	}
	return name[len(aside):]
}

// rename renames in dir, over nothing.
func rename(dir *os.File, from, to string) error {
	return unix.Renameat2(int(dir.Fd()), from, int(dir.Fd()), to, unix.RENAME_NOREPLACE)
}

// unlink takes the file that is st, whose name is name, away, and no other: what somebody
// renames over it behind a look would be lost unread. So what has the name is set aside, where
// it stays what it is, and removed if it is the file; if not, it is put back and looked at.
func (t *Taker) unlink(dir *os.File, name string, k *known, st *stat) (gone bool, err error) {
	if now, err := statAt(int(dir.Fd()), name, unix.AT_SYMLINK_NOFOLLOW); err != nil || !now.is(st) {
		return false, nil // its name is another's
	}
	if err := fpLooked.Inject(); err != nil {
		return false, err
	}
	at := name
	if !isAside(name) {
		at = aside + name
		switch err := rename(dir, name, at); {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EEXIST): // it was renamed; or waits for what is aside
			return false, nil
		case err != nil:
			t.unremovable(k, err)
			return false, nil
		}
	}
	if err := fpAside.Inject(); err != nil {
		return false, err
	}
	if now, err := statAt(int(dir.Fd()), at, unix.AT_SYMLINK_NOFOLLOW); err != nil || !now.is(st) || now.size != st.size || now.links != 1 {
		if err := fpForeign.Inject(); err != nil {
			return false, err
		}
		t.watch.mark(path.Join(path.Dir(k.at), putBack(dir, at)))
		return false, nil
	}
	if err := unix.Unlinkat(int(dir.Fd()), at, 0); err != nil {
		putBack(dir, at)
		t.unremovable(k, err)
		return false, nil
	}
	if at == name {
		t.watch.everything() // a file that has its proper name may have waited for it
	}
	return true, nil
}

// unremovable has no removal of a file tried again, and says so once.
func (t *Taker) unremovable(k *known, err error) {
	k.stays = true
	t.once("unlink", "a file below the mount point that was taken in cannot be removed", "path", k.at, "err", err)
}
