package offline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/mount/capture"
)

// removed is a file without a name that is watched for a while: who had begun to open it
// when it was removed may write to it.
type removed struct {
	k     *known
	file  *os.File
	since time.Time
}

// linger is how long a file that was removed is watched at least.
const linger = time.Second

// finish does what is left to do with a file that is taken to its end: if nobody has it open
// for writing its line ends and, unless it is to be kept, it is removed.
func (t *Taker) finish(ctx context.Context, dir *os.File, f *os.File, name string, k *known) error {
	if err := fpWhole.Inject(); err != nil {
		return err
	}
	busy, err := written(f)
	if err != nil {
		t.once("lease", "files below the mount point are not removed: the file system tells nobody whether a file is open for writing", "path", k.at, "err", err)
		return t.end(ctx, k)
	}
	if busy {
		t.writers[k] = true
		t.open.Store(int64(len(t.writers)))
		return nil
	}
	whole, err := t.whole(f, k)
	release(f)
	delete(t.writers, k)
	t.open.Store(int64(len(t.writers)))
	if err != nil {
		return err
	}
	if !whole { // somebody wrote to it, and has closed it
		t.watch.mark(k.at)
		return nil
	}
	if err := t.end(ctx, k); err != nil {
		return err
	}
	if t.o.Keep || !t.serving || k.stays {
		return nil
	}
	return t.remove(dir, f, name, k)
}

// whole reports whether f, which nobody writes to, is as it was when it was taken to its end.
func (t *Taker) whole(f *os.File, k *known) (bool, error) {
	st, err := statOf(int(f.Fd()))
	if err != nil || st.size != k.size {
		return false, err
	}
	err = unchanged(f, k)
	if errors.Is(err, errAnew) {
		return false, nil
	}
	return err == nil, err
}

// end ends the file's unfinished line.
func (t *Taker) end(ctx context.Context, k *known) error {
	if k.ended == k.s.Pos {
		return nil
	}
	if err := t.o.Capture.EndLine(ctx, k.id, false); err != nil {
		return err
	}
	k.ended = k.s.Pos
	return nil
}

// remove removes a file that has one name and nothing that is not committed. The lease keeps
// writers out meanwhile.
func (t *Taker) remove(dir, f *os.File, name string, k *known) error {
	switch busy, err := written(f); {
	case err != nil:
		return &fileError{fmt.Errorf("ask for a lease: %w", err)}
	case busy:
		return nil
	}
	defer release(f)
	if whole, err := t.whole(f, k); !whole || err != nil { // who opened it since has it looked at
		return err
	}
	st, err := statOf(int(f.Fd()))
	if err != nil {
		return err
	}
	switch {
	case st.size != k.s.Pos:
		return nil // it has room that was reserved
	case st.links != 1:
		t.once("links", "a file below the mount point has several names: it is taken in, and left", "path", k.at)
		return nil
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return &fileError{fmt.Errorf("keep the file open: %w", err)}
	}
	file := os.NewFile(uintptr(fd), k.at)
	if gone, err := t.unlink(dir, name, k, &st); !gone {
		return errors.Join(err, file.Close())
	}
	t.removed = append(t.removed, &removed{k: k, file: file, since: time.Now()})
	t.gone.Add(1)
	t.o.Logger.Info("a file that was written while nothing was mounted is taken in and removed", "path", k.at, "bytes", k.s.Pos)
	if err := fpRemoved.Inject(); err != nil {
		return err
	}
	if err := dir.Sync(); err != nil { // it could be there again after a power loss, and nobody know it
		return &fileError{fmt.Errorf("sync the directory from which it is removed: %w; after a power loss it may be taken again", err)}
	}
	return nil
}

// letGo forgets files that were removed and that nobody writes to.
func (t *Taker) letGo(ctx context.Context) error {
	kept := t.removed[:0]
	for _, r := range t.removed {
		done, err := t.letGoOne(ctx, r)
		if err != nil && !errors.Is(err, ErrNoRoom) {
			return err
		}
		if !done {
			kept = append(kept, r)
		}
	}
	clear(t.removed[len(kept):])
	t.removed = kept
	return nil
}

func (t *Taker) letGoOne(ctx context.Context, r *removed) (bool, error) {
	if time.Since(r.since) < linger {
		return false, nil
	}
	busy, err := written(r.file)
	if busy || err != nil {
		_, _, takeErr := t.take(ctx, r.file, r.k.at)
		if errors.Is(takeErr, capture.ErrSkipped) {
			takeErr = nil
		}
		return false, takeErr
	}
	defer release(r.file)
	_, more, err := t.take(ctx, r.file, r.k.at)
	if err != nil && !errors.Is(err, capture.ErrSkipped) || more {
		return false, err
	}
	if err := t.forget(ctx, r.k); err != nil {
		return false, err
	}
	return true, r.file.Close()
}
