package receive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/internal/flock"
	"ftfuse/internal/plugin"
	"ftfuse/internal/service"
	"ftfuse/internal/status"
	"ftfuse/internal/upstream"
	"ftfuse/queue"
	"ftfuse/transport"
)

// engine is what a Server does with what it takes: the output files of `ftfuse receive`
// (sink.Sink, whose contract this is), or a Handler of somebody else's.
type engine interface {
	// Take returns the transaction that commits b, with what the engine must remember of
	// it. Prepare may be wrapped, and must be called.
	Take(b batch.Sealed, from string) (*queue.Txn, error)
	// Apply does what is to be done with committed batches until ctx ends.
	Apply(ctx context.Context) error
	// Checkpoints makes what was applied durable, acks it to the queue and reports it to
	// final, until ctx ends; then once more.
	Checkpoints(ctx context.Context, final func(...batch.ID)) error
	// Drain returns nil when all that the queue holds is applied.
	Drain(ctx context.Context) error
	// Expects reports whether a batch that was taken is not final yet.
	Expects(id batch.ID) bool
	// Final returns what of delivered, from below on, is final.
	Final(lane batch.Lane, delivered *batch.Ranges, below uint64) []batch.Range
	// Close gives everything back. Nothing runs any more, and the queue is closed.
	Close() error
}

// plan is what a Server is made of: ServerOptions, or the configuration of the role.
type plan struct {
	dir      string // locked; the queue is in queueDir
	queueDir string
	host     string
	listen   string
	files    service.Files
	allow    map[string][]string
	conns    int
	perAddr  int
	shutdown time.Duration
	queue    queue.Options // Cursors and limits; the rest is filled in
	engine   func(ctx context.Context, q *queue.Queue) (engine, error)
	plugins  func(q *queue.Queue) (*plugin.Set, error) // nil: there are none
	log      *slog.Logger
}

// Server takes batches from mounts and relays, commits each exactly once in a queue of its
// own, answers for them, and hands them on: to a Handler, or, as the role `ftfuse receive`,
// to output files. OpenServer makes one.
//
// Experimental: names and signatures may change between versions; what is on disk and on
// the wire is docs/protocol.md's and does not.
type Server struct {
	p   plan
	log *slog.Logger

	shutdown atomic.Int64 // nanoseconds: how long a stop may drain

	lock    *flock.File
	q       *queue.Queue
	engine  engine
	plugins *plugin.Set // nil: there are none
	handler *handler
	tell    *upstream.Teller
	server  *transport.Server
	secure  *service.Security // nil: plain TCP
	count   *counters
	ln      net.Listener
	serving atomic.Bool
	wired   chan struct{} // closed when tell is set, or never will be
	unwired func()        // closes it
}

// openServer takes the lock, opens the queue, and has the engine redo what earlier runs
// left. The caller closes what it returns, also beside an error.
func openServer(ctx context.Context, p plan) (*Server, error) {
	s := &Server{p: p, log: p.log, count: &counters{}, wired: make(chan struct{})}
	s.shutdown.Store(int64(p.shutdown))
	s.unwired = sync.OnceFunc(func() { close(s.wired) })
	return s, s.open(ctx)
}

func (s *Server) open(ctx context.Context) (err error) {
	if s.lock, err = service.Lock(s.p.dir); err != nil {
		return err
	}
	if s.secure, err = service.OpenSecurity(s.p.files, s.p.allow, s.log); err != nil {
		return err
	}
	o := s.p.queue
	o.Dedupe, o.OneHost, o.OnLoss, o.Logger = true, s.secure != nil, s.lost, s.log
	if s.q, err = queue.Open(s.p.queueDir, o); err != nil {
		return err
	}
	if s.engine, err = s.p.engine(ctx, s.q); err != nil {
		return err
	}
	if s.p.plugins != nil {
		if s.plugins, err = s.p.plugins(s.q); err != nil {
			return err
		}
	}
	s.tell = upstream.New(s.q, s.finals, s.log)
	s.unwired()
	resent, err := openResent(s.q)
	if err != nil {
		return err
	}
	s.handler = &handler{q: s.q, engine: s.engine, tell: s.tell, resent: resent, count: s.count, log: s.log}
	return nil
}

// Addr is where it listens; nil before Serve does.
func (s *Server) Addr() net.Addr {
	if s.ln == nil {
		return nil
	}
	return s.ln.Addr()
}

// finals returns what of lane, from below on, is final.
func (s *Server) finals(lane batch.Lane, below uint64) []batch.Range {
	delivered := s.q.Delivered(lane) // before the engine is asked: what it lets go in between is final
	for _, l := range s.q.LostRanges(lane) {
		for _, x := range l.Ranges.All() {
			delivered.RemoveRange(x)
		}
	}
	return s.engine.Final(lane, &delivered, below)
}

// lost tells the peers what the queue lost.
func (s *Server) lost(l queue.Loss) {
	<-s.wired
	if s.tell != nil {
		s.tell.Lost(l)
	}
}

// begin listens, without taking anything yet.
func (s *Server) begin(ctx context.Context) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", s.p.listen)
	if err != nil {
		return fmt.Errorf("listen for batches: %w", err)
	}
	s.ln = ln
	s.server = transport.NewServer(transport.ServerOptions{
		Identity: transport.Identity{Node: s.q.Node(), Host: s.p.host, Role: roleName, Product: status.Product()},
		MaxConns: s.p.conns, MaxConnsPerAddress: s.p.perAddr,
		TLS: s.secure.Server(), Admission: s.secure.Admission(), LaneHost: s.q.Host, KnowsLane: s.q.KnowsLane,
		Logger: s.log,
	}, s.handler)
	s.handler.server = s.server
	s.tell.Attach(s.server)
	return nil
}

// run serves until ctx ends, and then drains, or until something fails. ready is called
// when it serves.
func (s *Server) run(ctx context.Context, ready func()) error {
	p := service.NewParts()
	p.Start("serve", func(ctx context.Context) error { return s.server.Serve(ctx, s.ln) })
	p.Start("apply", s.engine.Apply)
	p.Start("resent", func(ctx context.Context) error { return s.handler.resent.run(ctx, s.log) })
	p.Start("certificates", s.secure.Watch)
	p.Start("checkpoint", func(ctx context.Context) error {
		return s.engine.Checkpoints(ctx, s.server.Final)
	})
	all := []string{"serve", "apply", "checkpoint", "resent", "certificates"}
	if s.plugins != nil {
		p.Start("plugins", s.plugins.Run)
		all = append(all, "plugins")
	}
	s.serving.Store(true)
	ready()
	select {
	case <-ctx.Done():
		s.serving.Store(false)
		s.drain(p)
	case <-s.q.Failed():
		p.Fail(s.q.Err())
	case <-p.Failed():
	}
	// In this order: what is taken is applied as far as drain got, and made durable last.
	p.Stop(all...)
	return p.Err()
}

// drain stops taking and waits, as long as the shutdown may last, until what was taken is
// applied. What remains stays in the queue.
func (s *Server) drain(p *service.Parts) {
	limited, done := context.WithTimeout(context.Background(), time.Duration(s.shutdown.Load()))
	defer done()
	ctx, cancel := p.Until(limited)
	defer cancel()
	if err := s.server.Shutdown(ctx); err != nil {
		s.log.Warn("peers were cut off: they did not end in time", "error", err)
	}
	if err := s.q.Flush(ctx); err != nil {
		s.log.Warn("stopping before everything was committed", "error", err)
		return
	}
	if err := s.engine.Drain(ctx); err != nil {
		s.log.Warn("stopping before everything was written: the rest stays in the queue")
	}
	if s.plugins == nil {
		return
	}
	if err := s.plugins.Drain(ctx); err != nil {
		s.log.Warn("stopping before every plugin has taken what there is and has ended: the rest stays in the queue")
	}
}

// Close gives everything back. Serve must have returned.
func (s *Server) Close() error {
	s.unwired()
	var errs []error
	if s.q != nil {
		errs = append(errs, s.q.Close())
	}
	if s.engine != nil {
		errs = append(errs, s.engine.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// ServerOptions are what OpenServer needs. The zero value of a field that is not said to be
// needed is its default.
type ServerOptions struct {
	Dir     string  // state: the queue, and a lock on it; made if it is not there; needed
	Listen  string  // HOST:PORT; needed
	Handler Handler // needed

	Host          string // what peers are told, and see in their status; default the machine's name
	Cert, Key, CA string // PEM files, all or none; none: plain TCP that lets everybody in
	// Allow maps the name in a peer's certificate to the hosts that it may speak for, both
	// globs; nil: each for the host of its own name.
	Allow                     map[string][]string
	MaxConns, MaxConnsPerAddr int           // default 1024 and 64
	MaxBytes                  int64         // of the queue, where peers begin to wait; default 8 GiB
	CommitEvery               time.Duration // longest that a handled batch waits for Handler.Commit; default 500 ms
	CommitBytes               int64         // payload that does not wait so long; default 64 MiB
	ShutdownTimeout           time.Duration // how long the end of Serve's context may take to drain; default 10 s
	Logger                    *slog.Logger  // default: none
}

// ErrOptions is returned by OpenServer for options that cannot be meant.
var ErrOptions = errors.New("receive: options")

// OpenServer opens the state below o.Dir, which is this Server's alone, and asks the
// Handler for its Position. The caller ends it with Close.
func OpenServer(ctx context.Context, o ServerOptions) (*Server, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s, err := openServer(ctx, plan{
		dir: o.Dir, queueDir: filepath.Join(o.Dir, "queue"), host: o.Host, listen: o.Listen,
		files: service.Files{Cert: o.Cert, Key: o.Key, CA: o.CA}, allow: o.Allow,
		conns: o.MaxConns, perAddr: o.MaxConnsPerAddr, shutdown: o.ShutdownTimeout,
		queue: queue.Options{MaxBytes: o.MaxBytes, OnFull: queue.Block, Cursors: []string{handleCursor}},
		engine: func(ctx context.Context, q *queue.Queue) (engine, error) {
			return openHandled(ctx, q, o.Handler, filepath.Join(o.Dir, "dead"), o.CommitEvery, o.CommitBytes)
		},
		log: o.Logger,
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// complete fills defaults in.
func (o *ServerOptions) complete() error {
	switch {
	case !filepath.IsAbs(o.Dir):
		return fmt.Errorf("%w: Dir %q is not an absolute path", ErrOptions, o.Dir)
	case o.Listen == "":
		return fmt.Errorf("%w: Listen is empty", ErrOptions)
	case o.Handler == nil:
		return fmt.Errorf("%w: no Handler", ErrOptions)
	case (o.Cert == "") != (o.Key == "") || (o.Key == "") != (o.CA == ""):
		return fmt.Errorf("%w: of Cert, Key and CA all must be given, or none", ErrOptions)
	}
	if o.Host == "" {
		o.Host, _ = os.Hostname()
	}
	setDefault(&o.MaxConns, 1024)
	setDefault(&o.MaxConnsPerAddr, 64)
	setDefault(&o.MaxBytes, 8<<30)
	setDefault(&o.CommitEvery, 500*time.Millisecond)
	setDefault(&o.CommitBytes, 64<<20)
	setDefault(&o.ShutdownTimeout, 10*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Serve listens and takes batches until ctx ends, then stops taking, drains, and returns
// nil; or it returns what failed, of the Handler's errors the first. It is called once.
func (s *Server) Serve(ctx context.Context) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	return s.run(ctx, func() {
		s.log.Info("ready", "role", roleName, "listen", s.Addr().String(), "node", s.q.Node().String())
	})
}
