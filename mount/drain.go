package mount

import (
	"context"
	"os"
	"sync"
	"time"

	"ftfuse/internal/forward"
	"ftfuse/internal/systemd"
)

// leave ends this worker without touching the mount: a successor goes on, and does not wait
// for plugins that do not end at once.
func (r *role) leave() {
	r.plugins.Abandon()
	r.slow.leave()
	r.srv.leave()
	r.conn.Close()
	r.dev.Close()
}

// reconnectGrace is how long a stopping role waits for a connection that is not there.
// Tests, whose destination never is, shorten it.
var reconnectGrace = forward.DefaultGrace

// drain accepts no more writes and sends what there is until shutdown_timeout. What
// remains stays queued. It returns true, early, where the worker of another holder has
// taken the connection meanwhile.
func (r *role) drain() (adopted bool) {
	ctx, cancel := context.WithTimeout(context.Background(), r.now.Load().ShutdownTimeout)
	defer cancel()
	over := make(chan struct{})
	go func() {
		defer close(over)
		select {
		case <-r.offer.Adopted():
			r.log.Info("leaving the mount to the worker of another holder", "pid", os.Getpid())
			adopted = true
			cancel()
		case <-ctx.Done():
		}
	}()
	r.srv.closing.Store(true)
	r.stopUnder()
	r.sendAll(ctx)
	cancel()
	<-over
	return adopted
}

// sendAll waits until everything that was accepted is with the next node, or says why it
// waits no longer.
func (r *role) sendAll(ctx context.Context) {
	if err := r.cap.DrainAll(ctx); err != nil {
		r.log.Warn("not everything is in the queue; the rest stays in the spool", "err", err)
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := r.plugins.Drain(ctx); err != nil {
			r.log.Warn("stopping before every plugin has taken what there is and has ended; the rest stays queued")
		}
	})
	if err := r.fwd.Drain(ctx); err != nil {
		r.log.Warn("stopping before everything is sent; the rest stays queued", "err", err)
	}
	if err := r.sink.Drain(ctx); err != nil {
		r.log.Warn("stopping before all local outputs are written; the rest stays queued", "err", err)
	}
}

// unmount takes the mount away. Where programs still hold files open it is detached
// and their connection dropped: they get ENOTCONN from then on.
func (r *role) unmount() {
	r.slow.close() // while its requests are answered
	r.srv.closing.Store(true)
	r.srv.stop()
	busy, err := unmount(r.m.Point)
	switch {
	case err != nil:
		r.log.Error("the mount point cannot be unmounted; it answers ENOTCONN until `umount -l`", "point", r.m.Point, "err", err)
	case busy:
		r.log.Warn("programs still use the mount; it is detached and their open files answer ENOTCONN", "point", r.m.Point)
	}
	if err == nil {
		r.link.Unmounted()
	}
	if busy && os.Geteuid() != 0 || err != nil {
		r.abandoned = true // the loop still reads; the end of the process ends it
		return
	}
	r.disconnect()
}

// settle ends a role whose mount somebody has taken away: nobody can write, and what was
// accepted is sent until shutdown_timeout.
func (r *role) settle() {
	r.link.Unmounted() // the holder has nothing more to keep
	systemd.Tell(r.log, systemd.Stopping())
	r.slow.close()
	r.srv.closing.Store(true)
	r.srv.stop()
	ctx, cancel := context.WithTimeout(context.Background(), r.now.Load().ShutdownTimeout)
	defer cancel()
	r.sendAll(ctx)
	r.disconnect()
}

// lingers is how long an unmounted connection may have requests. Its end takes milliseconds.
const lingers = time.Second

// disconnect waits for the end of the request loop and closes the connection. It goes on where
// another mount namespace, a container's or a sandboxed service's, has a copy of the mount,
// which nobody here can unmount: it is ended there with the last descriptor.
func (r *role) disconnect() {
	late := time.NewTimer(lingers)
	defer late.Stop()
	select {
	case <-r.served:
	case <-late.C:
		r.log.Warn("another mount namespace (a container, a service with PrivateTmp or the like) still has the mount; programs there get ENOTCONN from now on", "point", r.m.Point)
		r.srv.leave()
		<-r.served
	}
	r.srv.wg.Wait()
	if err := r.sess.End(); err != nil {
		r.log.Warn("the session of the mount that ended is left; the next start clears it", "err", err)
	}
	r.conn.Close()
	r.dev.Close()
}
