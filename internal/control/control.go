// Package control lets a running role be asked: over a unix socket in its directory, which
// only its own user (and root) can open, and, where the configuration names an address,
// over HTTP for metrics, health checks and a page to look at.
//
//	ftfuse status ──┐                              ┌── GET /status
//	ftfuse queue  ──┴─▶ <state_dir>/<role>/ftfuse.sock ── /queue/…     (the role's handlers)
//	Prometheus, probes, people ─▶ http.listen ─────┴── /metrics /healthz /readyz /
//
// The socket can read and change queues; the address only tells.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"ftfuse/internal/status"
)

// Options of a Server.
type Options struct {
	// Dir is the role's directory. Whoever starts the server holds the lock of the role or
	// takes it over: a socket that is there is replaced.
	Dir string

	// Status returns what the role is doing. It is called from several goroutines, at most
	// a few times a second; the server adds what it knows itself.
	Status func() status.Role

	// Handlers answer more on the socket (never on HTTP), by patterns of http.ServeMux.
	// They may stream for as long as they like; their context ends with Close.
	Handlers map[string]http.Handler

	HTTP   string // host:port; "" is off
	Logger *slog.Logger
}

// Server answers until Close. Safe for concurrent use.
type Server struct {
	o       Options
	log     *slog.Logger
	started time.Time
	sock    *socket
	tcp     net.Listener // nil: off
	cancel  context.CancelFunc
	servers []*http.Server
	wg      sync.WaitGroup

	mu     sync.Mutex
	closed bool // no handler begins any more
}

// Start listens on the socket and, where o says so, for HTTP, and answers at once.
func Start(o Options) (*Server, error) {
	s := &Server{o: o, log: o.Logger, started: time.Now()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if s.sock, err = listen(o.Dir); err != nil {
		return nil, err
	}
	if o.HTTP != "" {
		if s.tcp, err = net.Listen("tcp", o.HTTP); err != nil {
			return nil, errors.Join(fmt.Errorf("listen for http: %w; change http.listen", err), s.sock.Close())
		}
		s.tcp = limit(s.tcp, maxHTTP)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.serve(ctx, s.sock, s.socketServer())
	if s.tcp != nil {
		s.serve(ctx, s.tcp, s.httpServer())
		s.log.Info("http", "listen", s.tcp.Addr().String())
	}
	return s, nil
}

// Addr is where it listens for HTTP; nil where it does not.
func (s *Server) Addr() net.Addr {
	if s.tcp == nil {
		return nil
	}
	return s.tcp.Addr()
}

// Close stops answering, cuts off what is being answered, waits for it, and removes the
// socket unless a successor has put its own there.
func (s *Server) Close() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	var errs []error
	for _, h := range s.servers {
		errs = append(errs, h.Close()) // the connections first: who reads must not take a part for the whole
	}
	s.cancel()
	s.wg.Wait()
	return errors.Join(errs...)
}

// serve answers on l until Close.
func (s *Server) serve(ctx context.Context, l net.Listener, h *http.Server) {
	h.BaseContext = func(net.Listener) context.Context { return ctx }
	h.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	s.servers = append(s.servers, h)
	inner := h.Handler
	h.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.enter() {
			return
		}
		defer s.wg.Done()
		inner.ServeHTTP(w, r)
	})
	s.wg.Go(func() {
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("status and queue commands are answered no more", "listen", l.Addr().String(), "error", err)
		}
	})
}

// enter counts a handler in, for which Close waits (that of http.Server does not).
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.wg.Add(1)
	}
	return !s.closed
}

// now is the role's status, completed.
func (s *Server) now() status.Role {
	r := s.o.Status()
	r.Version, r.PID, r.Started = status.Version, os.Getpid(), s.started
	r.Stamp(time.Now())
	return r
}

// socketServer answers on the socket. Requests are of this program and this user: they
// have no limits but that of a header.
func (s *Server) socketServer() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(s.now()); err != nil {
			s.log.Debug("the status was not read to its end", "error", err)
		}
	})
	for pattern, h := range s.o.Handlers {
		mux.Handle(pattern, h)
	}
	return &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout}
}

// OnHangup calls f at each SIGHUP until ctx ends; it then returns nil.
func OnHangup(ctx context.Context, f func()) error {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGHUP)
	defer signal.Stop(ch)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ch:
			f()
		}
	}
}
