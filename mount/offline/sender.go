package offline

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"ftfuse/mount/capture"
)

// Found is a Target for a while.
type Found struct {
	Target
	Leave  func() error    // is called once, when it is not used any more
	Wanted <-chan struct{} // closed when it is to be left soon for somebody else; nil: never
}

// Sender sends files and streams to whatever target there is, and goes on where it was when
// that went away and another is found. It is for one goroutine.
type Sender struct {
	Find     func(ctx context.Context) (Found, error) // a running mount, or its queue
	Patience time.Duration                            // how long a target may be away
	Progress func(pos, size int64)                    // size is -1 of a stream; may be nil

	found  Found
	since  time.Time     // when the target was lost; zero: it is there
	remind time.Duration // remindEvery; tests set it
}

// retryEvery is how often a target that is away is looked for.
const retryEvery = 100 * time.Millisecond

// final reports whether trying again would not help.
func final(err error) bool {
	return errors.Is(err, ErrRefused) || errors.Is(err, ErrPath) || errors.Is(err, ErrNoRoom) || errors.Is(err, ErrOther) || errors.Is(err, errLocal)
}

// errLocal is wrapped by what goes wrong on this side.
var errLocal = errors.New("cannot be read")

// do calls fn with a target, again with another where the target went away or was wanted
// by somebody else: the context of the call ends then.
func (s *Sender) do(ctx context.Context, fn func(ctx context.Context, t Target) error) error {
	for {
		var err error
		if s.found.Target == nil {
			s.found, err = s.Find(ctx)
		}
		if err == nil {
			if err = s.unlessWanted(ctx, fn); err == nil {
				return nil
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if final(err) {
			return err
		}
		if s.since.IsZero() {
			s.since = time.Now()
		}
		err = errors.Join(err, s.Close())
		if time.Since(s.since) > s.Patience {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryEvery):
		}
	}
}

// unlessWanted calls fn with the target that was found.
func (s *Sender) unlessWanted(ctx context.Context, fn func(ctx context.Context, t Target) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-s.found.Wanted:
			cancel()
		case <-ctx.Done():
		}
	})
	err := fn(ctx, s.found.Target)
	cancel()
	wg.Wait()
	return err
}

// Close leaves the target.
func (s *Sender) Close() error {
	leave := s.found.Leave
	s.found = Found{}
	if leave == nil {
		return nil
	}
	return leave()
}

func (s *Sender) at(pos, size int64) {
	s.since = time.Time{}
	if s.Progress != nil {
		s.Progress(pos, size)
	}
}

// File sends a file, from where an earlier sending ended unless again is set, and returns
// how many bytes were sent now.
func (s *Sender) File(ctx context.Context, f *os.File, as string, again bool) (sent int64, err error) {
	buf := make([]byte, MaxData)
	return sent, s.do(ctx, func(ctx context.Context, t Target) error {
		r, by, err := FileRequest(f, as)
		if err != nil {
			return fmt.Errorf("%w: %w", errLocal, err)
		}
		r.Again = again
		b, err := t.Begin(ctx, r)
		if err != nil {
			return err
		}
		again = false
		if s.at(b.Pos, r.Size); b.Done && b.Pos >= r.Size {
			return nil
		}
		for pos := b.Pos; ; {
			n, err := f.ReadAt(buf, pos)
			if n == 0 && err == io.EOF {
				return t.End(ctx, b.ID)
			}
			if n == 0 {
				return fmt.Errorf("%w: %w", errLocal, err)
			}
			if err := t.Data(ctx, b.ID, pos, buf[:n], by); err != nil {
				return err
			}
			pos += int64(n)
			sent += int64(n)
			s.at(pos, max(pos, r.Size))
		}
	})
}

// Stream sends what r gives until its end. With a name a stream that was sent in part can be
// sent again from its beginning: what is in the queue is passed over. It returns how many
// bytes were sent now.
func (s *Sender) Stream(ctx context.Context, r io.Reader, as, name string) (sent int64, err error) {
	if name == "" {
		name = AnonymousName(rand.Text())
	}
	in := &stream{ch: make(chan []byte, 8), every: s.remind}
	if in.every <= 0 {
		in.every = remindEvery
	}
	go in.read(ctx, r)
	return sent, s.do(ctx, func(ctx context.Context, t Target) error {
		b, err := t.Begin(ctx, Request{Path: as, Name: name})
		if err != nil {
			return err
		}
		in.idle = func() { remind(ctx, t, b.ID, in.at) }
		if err := in.skip(ctx, b); err != nil {
			return err
		}
		for {
			s.at(in.at, -1)
			data, err := in.more(ctx)
			if err == io.EOF {
				return t.End(ctx, b.ID)
			}
			if err != nil {
				return err
			}
			by := capture.Fed{PID: uint32(os.Getpid()), UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Time: time.Now().UnixNano()}
			if err := t.Data(ctx, b.ID, in.at, data, by); err != nil {
				return err
			}
			sent += int64(len(data))
			in.drop(len(data))
		}
	})
}

// remindEvery is how often a stream that gives nothing reminds its target of its sender.
const remindEvery = staleStream / 6

// remind tells t that the sender of a stream is there. A target that does not hear it, or is
// another one by now, is no concern until there are bytes for it.
func remind(ctx context.Context, t Target, id uint64, at int64) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_ = t.Data(ctx, id, at, nil, capture.Fed{})
}

// stream is what was read and is not known to be in the queue.
type stream struct {
	ch   chan []byte // closed at the end
	err  error       // of the reading; good once ch is closed
	at   int64       // of have[0]
	have []byte

	idle  func() // called every so often while there is nothing to read
	every time.Duration
}

// read reads ahead until the end.
func (in *stream) read(ctx context.Context, r io.Reader) {
	defer close(in.ch)
	for {
		buf := make([]byte, 128<<10)
		n, err := r.Read(buf)
		if n > 0 {
			select {
			case in.ch <- buf[:n]:
			case <-ctx.Done():
				in.err = ctx.Err()
				return
			}
		}
		if err != nil {
			if err != io.EOF {
				in.err = fmt.Errorf("%w: %w", errLocal, err)
			}
			return
		}
	}
}

// more returns at least one byte from in.at on, io.EOF at the end.
func (in *stream) more(ctx context.Context) ([]byte, error) {
	for len(in.have) < MaxData-128<<10 {
		if len(in.have) > 0 { // then only what is there
			select {
			case b, ok := <-in.ch:
				if !ok {
					return in.have, nil
				}
				in.have = append(in.have, b...)
				continue
			default:
				return in.have, nil
			}
		}
		select {
		case b, ok := <-in.ch:
			if !ok && in.err != nil {
				return nil, in.err
			}
			if !ok {
				return nil, io.EOF
			}
			in.have = append(in.have, b...)
		case <-time.After(in.every):
			in.idle()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return in.have, nil
}

func (in *stream) drop(n int) {
	in.at += int64(n)
	in.have = append(in.have[:0], in.have[n:]...)
}

// skip goes to the position that b names.
func (in *stream) skip(ctx context.Context, b Begun) error {
	if b.Pos < in.at {
		return fmt.Errorf("%w: the queue knows of %d bytes, and had %d: was it repaired or replaced?", ErrOther, b.Pos, in.at)
	}
	for in.at < b.Pos {
		data, err := in.more(ctx)
		if err == io.EOF {
			return fmt.Errorf("%w: it ends after %d bytes, and %d were sent; choose another --id", ErrOther, in.at, b.Pos)
		}
		if err != nil {
			return err
		}
		n := int(min(int64(len(data)), b.Pos-in.at))
		if in.at < int64(len(b.Head)) {
			if m := min(n, len(b.Head)-int(in.at)); !bytes.Equal(data[:m], b.Head[in.at:int(in.at)+m]) {
				return fmt.Errorf("%w, and began otherwise; choose another --id", ErrOther)
			}
		}
		in.drop(n)
	}
	return nil
}
