package mount

import (
	"errors"
	"fmt"
	"math"
	"os"

	"ftfuse/config"
	"ftfuse/internal/systemd"
	"ftfuse/mount/session"
)

// mount mounts, or takes the mount over, and starts the request loop.
func (r *role) mount() (err error) {
	if err := r.chownRoot(); err != nil {
		return err
	}
	if r.taken.fd < 0 {
		r.taken.id = session.NewID()
	}
	if err := r.connect(); err != nil {
		return errors.Join(err, r.dismount())
	}
	if r.mounted {
		if err := r.sess.Begin(r.taken.id, r.store.Next()); err != nil {
			return errors.Join(err, r.dismount())
		}
	}
	if r.tried != 0 {
		r.sess.Opened(r.tried)
	}
	if err := fpAttached.Inject(); err != nil {
		return errors.Join(err, r.dismount())
	}
	if err := r.announce(); err != nil {
		return errors.Join(err, r.dismount())
	}
	r.support = inForce(r.cfg, r.support)
	r.srv = newServer(r.conn, r.dev, r.store, r.cap, r.sess, r.free, serverSettings(r.cfg, r.support.Passthrough), r.log)
	r.srv.procs, r.srv.point, r.srv.longestHold = r.procs, r.m.Point, &r.longestHold
	r.srv.fail = r.failed
	if !r.mounted {
		if err := r.resume(); err != nil {
			return err
		}
	}
	if q := r.cfg.QueueFor(config.RoleMount); r.kernelWrites() {
		r.slow = newThrottle(int64(q.MaxBytes), r.m.Point, r.freeBlocking, r.store, r.srv.kernelWritten, r.log)
		r.srv.throttle = r.slow
	}
	r.link.Watch(r.srv.alive)
	go func() {
		defer close(r.served)
		if err := r.srv.serve(); err != nil {
			r.failed(err)
		}
	}()
	if err := r.link.Ready(); err != nil {
		r.log.Warn("the holder is not told", "err", err) // it has died: see await
	}
	systemd.Tell(r.log, systemd.Ready()) // a worker is not asked: its holder is
	r.serving.Store(true)
	r.reload.Serve(r)
	r.log.Info("ready", append([]any{"point", r.m.Point, "pid", os.Getpid()}, r.captured()...)...)
	return nil
}

// resume makes the server ready to go on with the connection that was taken over.
func (r *role) resume() error {
	if err := r.srv.resume(r.held); err != nil {
		return err
	}
	if err := fpResumed.Inject(); err != nil {
		return err
	}
	if err := r.dev.Resend(); err != nil {
		return err
	}
	return fpResent.Inject()
}

// kernelWrites reports whether the kernel may be writing: by this configuration, or for
// programs that opened their files under a predecessor's.
func (r *role) kernelWrites() bool {
	return r.support.Passthrough || !r.mounted && r.dev.Passthrough()
}

// dismount undoes a mount of this process that does not come to serve. One that was
// taken over is the holder's.
func (r *role) dismount() error {
	if !r.mounted {
		return nil
	}
	_, err := unmount(r.m.Point)
	if err == nil {
		r.link.Unmounted()
	}
	return err
}

// chownRoot gives the root of the mount the owner that is configured.
func (r *role) chownRoot() error {
	if r.m.UID == nil && r.m.GID == nil {
		return nil
	}
	uid, gid := ^uint32(0), ^uint32(0)
	if r.m.UID != nil {
		uid = *r.m.UID
	}
	if r.m.GID != nil {
		gid = *r.m.GID
	}
	if err := r.store.ChownDir("", uid, gid); err != nil {
		return fmt.Errorf("give the root of the mount to uid %d, gid %d: %w", uid, gid, err)
	}
	return nil
}

// free is how many bytes may be accepted until max_bytes. What is on its way from the
// spool into the queue counts twice until its commit: at most 8 MiB, for milliseconds.
func (r *role) free() int64 { return r.queue.Room() - r.store.Uncaptured() }

// freeBlocking is free where who finds no room has to wait; else there is no end of it.
func (r *role) freeBlocking() int64 {
	if r.now.Load().QueueFor(config.RoleMount).OnFull != config.FullBlock {
		return math.MaxInt64
	}
	return r.free()
}
