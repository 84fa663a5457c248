package mount

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ftfuse/config"
	"ftfuse/internal/failpoint"
	"ftfuse/internal/reload"
	"ftfuse/mount/holder"
	"ftfuse/mount/kernel"
	"ftfuse/mount/session"
)

// Worker is what a process that a holder started knows beside its configuration. The
// zero Worker is one without a holder.
type Worker struct {
	Link    *holder.Link
	Version string // of this binary
	Text    []byte // of the configuration
	Reload  *reload.Handle
	Options Options
}

// Options are what the command line says of a mount and the configuration does not.
type Options struct {
	Source string   // what mount and df show as the source; "" is "ftfuse"
	Flags  []string // mount options that the kernel keeps; see config.MountFlags

	// Background: mount(8) mounted it, and umount(8) is how it is stopped. An unmount is an end in
	// order then: what was accepted is sent as at any stop.
	Background bool
}

// HolderSettings is what a configuration says to the holder of its mount.
func HolderSettings(cfg *config.Config) holder.Settings {
	return holder.Settings{
		Point: cfg.Mount.Point, Dir: cfg.RoleDir(config.RoleMount),
		Timeout: cfg.Mount.HolderTimeout, Shutdown: cfg.ShutdownTimeout,
		LogLevel: cfg.Log.Level, LogFormat: cfg.Log.Format,
	}
}

// What a holder keeps beside the descriptor, version 1; docs/protocol.md.
const (
	savedMagic   = "FTFUSEC\x00"
	savedVersion = 1
	savedHead    = 28
)

// errSaved is returned for saved bytes that this version cannot use.
var errSaved = errors.New("what was saved of the connection is not usable")

func encodeSaved(id session.ID, device []byte) []byte {
	b := append(make([]byte, 0, savedHead+len(device)), savedMagic...)
	b = binary.LittleEndian.AppendUint32(b, savedVersion)
	b = append(b, id[:]...)
	return append(b, device...)
}

func decodeSaved(b []byte) (id session.ID, device []byte, err error) {
	if len(b) < savedHead || !bytes.HasPrefix(b, []byte(savedMagic)) {
		return id, nil, fmt.Errorf("%w: %d bytes without its magic number", errSaved, len(b))
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != savedVersion {
		return id, nil, fmt.Errorf("%w: version %d, this program knows %d", errSaved, v, savedVersion)
	}
	copy(id[:], b[12:])
	return id, b[savedHead:], nil
}

// Failpoints of a takeover, in its order; those of the capture's start are between the second
// and the third.
var (
	fpTakeover = failpoint.New("mount/takeover") // a worker has a connection and has opened nothing yet
	fpRestored = failpoint.New("mount/restored") // it has the predecessor's open files, and has recovered nothing
	fpAttached = failpoint.New("mount/attached") // it can talk to the kernel; stray backing ids are closed
	fpResumed  = failpoint.New("mount/resumed")  // it knows handles and locks, and has asked for nothing
	fpResent   = failpoint.New("mount/resent")   // the kernel has the requests ready that were not answered; none was read
)

// taken is a connection that this process takes over; fd is -1 where it mounts.
type taken struct {
	fd     int
	id     session.ID
	device []byte
}

// enter waits for this worker's turn and takes the connection that there is: from the
// holder, or from a worker whose holder died, which has ended then.
func (r *role) enter(ctx context.Context, w Worker) error {
	r.taken.fd = -1
	if r.link == nil {
		if err := holder.AwaitSender(r.cfg.RoleDir(config.RoleMount), r.log); err != nil {
			return err
		}
	}
	if err := r.link.Hello(ctx, w.Version, HolderSettings(r.cfg), w.Text); err != nil {
		return err
	}
	fd, saved, _ := r.link.Taken()
	if r.link != nil {
		var err error
		if fd, saved, err = r.adopt(fd, saved); err != nil {
			return err
		}
	}
	if fd < 0 {
		return nil
	}
	if holder.Dead(fd) {
		r.log.Warn("the connection to take over is gone: the mount was unmounted, or dropped; mounting anew", "point", r.m.Point)
		unix.Close(fd)
		return nil
	}
	id, device, err := decodeSaved(saved)
	if err != nil {
		unix.Close(fd)
		return err
	}
	if err := fpTakeover.Inject(); err != nil {
		unix.Close(fd)
		return err
	}
	r.taken = taken{fd: fd, id: id, device: device}
	return nil
}

// adopt looks for a worker whose holder died and makes it leave. Its connection is the
// one that it serves, whatever else was handed over; the new holder has it first.
func (r *role) adopt(fd int, saved []byte) (int, []byte, error) {
	a, err := holder.Adopt(r.cfg.RoleDir(config.RoleMount))
	if a == nil || err != nil {
		return fd, saved, err
	}
	if a.Point != r.m.Point {
		a.Decline()
		return fd, saved, fmt.Errorf("adopt the connection of worker %d, whose holder died: it serves %s, and the configuration says %s; stop it (kill %d), then start again", a.PID, a.Point, r.m.Point, a.PID)
	}
	r.log.Warn("adopting the mount of a worker whose holder died", "point", a.Point, "worker", a.PID)
	if fd >= 0 {
		unix.Close(fd)
	}
	if err := r.link.Keep(a.FD, a.Saved); err != nil {
		a.Decline()
		return -1, nil, err
	}
	return a.FD, a.Saved, a.Take()
}

// connect mounts, or takes over; the library's side of the connection is r.conn.
func (r *role) connect() (err error) {
	dir := filepath.Join(r.cfg.RoleDir(config.RoleMount), "spool")
	r.support = kernel.Probe(dir)
	if r.taken.fd >= 0 {
		if r.dev, err = kernel.Attach(r.taken.fd, r.taken.device); err != nil {
			unix.Close(r.taken.fd)
			return err
		}
		if err := r.closeStray(); err != nil {
			return err
		}
	} else {
		if r.dev, err = kernel.Mount(r.m.Point, kernel.Options{AllowOther: r.m.AllowOther, Source: r.o.Source, Flags: r.o.Flags}); err != nil {
			return err
		}
		r.mounted = true
	}
	if r.conn, err = r.dev.Connect(r.support.Passthrough); err != nil {
		return err
	}
	switch {
	case !r.support.Passthrough:
	case !r.dev.Passthrough():
		r.support = kernel.Support{Why: "the mount was made without passthrough; unmount it and start again"}
	default:
		id, err := r.dev.TryBacking(dir)
		if err != nil {
			r.support = kernel.Support{Why: err.Error()}
		}
		r.tried = id
	}
	return nil
}

// closeStray gives up the backing ids of a connection that is taken over that no handle
// has. It comes before any other id is asked for.
func (r *role) closeStray() error {
	stray, err := r.sess.Stray()
	if err != nil {
		return err
	}
	for _, id := range stray {
		_ = r.dev.CloseBacking(id) // most are not open
	}
	r.sess.Closing(0)
	return nil
}

// announce gives the connection to the holder and, should that die, to the next one.
func (r *role) announce() (err error) {
	saved := encodeSaved(r.taken.id, r.dev.State())
	if r.mounted {
		if err := r.link.Keep(r.dev.FD(), saved); err != nil {
			return err
		}
	}
	r.offer, err = holder.NewOffer(r.cfg.RoleDir(config.RoleMount), r.link, r.m.Point, r.dev.FD(), saved)
	return err
}

// outcome is why a role stops serving.
type outcome int

const (
	outStop   outcome = iota // drain and unmount
	outLeave                 // a successor goes on with the connection
	outGone                  // it was unmounted, which is how it is stopped
	outFailed                // give the mount up
)

// await waits until the role has to stop serving.
func (r *role) await(ctx context.Context) (outcome, error) {
	gone := r.link.Gone()
	var late <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return outStop, nil
		case err := <-r.fail:
			r.log.Error("a part of the mount failed; the mount point is given up, what was accepted stays in the spool", "err", err)
			return outFailed, err
		case <-r.served:
			if r.o.Background {
				r.log.Info("stopping: it was unmounted", "point", r.m.Point)
				return outGone, nil
			}
			return outFailed, fmt.Errorf("%w: %s was unmounted by somebody else; what was accepted stays in the spool and is sent after the next start", ErrMountPoint, r.m.Point)
		case <-r.link.Handover():
			r.log.Info("leaving the mount to another worker", "pid", os.Getpid())
			return outLeave, nil
		case <-r.offer.Adopted():
			r.log.Info("leaving the mount to the worker of another holder", "pid", os.Getpid())
			return outLeave, nil
		case <-gone:
			gone = nil
			r.log.Warn("the holder has died; serving on until another `ftfuse mount` adopts the mount", "for", r.m.HolderTimeout)
			timer := time.NewTimer(r.m.HolderTimeout)
			defer timer.Stop()
			late = timer.C
		case <-late:
			r.log.Warn("no other holder came; stopping", "holder_timeout", r.m.HolderTimeout)
			return outStop, nil
		}
	}
}

// captured says which capture is in force and why, for the log. Files that programs opened
// under a predecessor that had passthrough stay the kernel's to write until they are closed.
func (r *role) captured() []any {
	if r.support.Passthrough {
		return []any{"capture", "passthrough"}
	}
	said := []any{"capture", "daemon", "why", r.support.Why}
	if n := len(r.srv.kernelWritten()); n > 0 {
		said = append(said, "still_passthrough", n)
	}
	return said
}
