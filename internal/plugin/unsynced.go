package plugin

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// With AckLine and an output file, what a plugin has taken stays here until what it printed is
// on disk. After a failed sync nobody knows what is: the pages count as clean, and the next sync
// says nothing. So none is tried again for the same bytes:
//
//	no room (a thin disk, a quota, NFS)  the child is killed; the next one, after a backoff, gets
//	                                     all that was not synced once more, whatever it said of it
//	anything else                        the role stops; the next start gives it again

// syncLater keeps a unit until the output is synced, which is soon.
func (r *runner) syncLater(o *offered, now time.Time) {
	r.unsynced, r.unsyncedBytes = append(r.unsynced, o), r.unsyncedBytes+o.bytes
	switch {
	case r.unsyncedBytes >= maxOfferedBytes, len(r.unsynced) >= maxOffered:
		r.syncAt = now
	case r.syncAt.IsZero():
		r.syncAt = now.Add(r.set.o.SyncEvery)
	}
}

// flushAcks brings the output to disk and acks what waited for that.
func (r *runner) flushAcks() {
	r.syncAt = time.Time{}
	if len(r.unsynced) == 0 || r.spoilt != "" || r.failed != nil {
		return
	}
	err := r.out.sync()
	switch {
	case err == nil:
		for _, o := range r.unsynced {
			r.done(o.unit)
		}
		clear(r.unsynced)
		r.unsynced, r.unsyncedBytes = r.unsynced[:0], 0
	case passes(err):
		r.spoil(err)
	default:
		r.fail(err)
	}
}

// spoil ends a child of which it is not known what it has printed.
func (r *runner) spoil(err error) {
	r.count.syncErrors.Add(1)
	r.log.Error("what a plugin printed did not get to disk; it is killed, and the next one gets the batches again", "plugin", r.label, "batches", len(r.unsynced), "error", err)
	r.spoilt = err.Error()
	r.kill(time.Now())
}

// fail ends the runner, and with it the role.
func (r *runner) fail(err error) {
	r.failed = fmt.Errorf("%w; stop, and give it %d batches again at the next start", err, len(r.unsynced))
	r.finishing = true
	r.end(time.Now().Add(r.set.o.ExitGrace))
}

// takeBack offers again what a child printed that was spoilt.
func (r *runner) takeBack() {
	if r.spoilt == "" {
		return
	}
	r.window = append(r.unsynced, r.window...)
	slices.SortFunc(r.window, func(a, b *offered) int { return a.place - b.place }) // acknowledged in any order
	r.bytes += r.unsyncedBytes
	r.unsynced, r.unsyncedBytes = nil, 0
}

// passes tells an error of a sync that other programs, or the operator, can end from one
// after which nothing is known of the disk.
func passes(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.EACCES} { // the last three of opening a directory
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
