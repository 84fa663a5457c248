package capture

import "math"

// Records of one path go in the order of the writes, also where the path has named
// several files: a log that is rotated has writes of the old file waiting when the new
// one is written to. Files of other paths take turns.

// cutTurn cuts what waits of f, oldest first, until about budget bytes were taken or the
// next item is newer than until. What other files of its path have that is older goes
// first.
func (c *Capture) cutTurn(f *file, budget int64, until uint64) error {
	p := f.path
	if p == nil || len(p.users) < 2 {
		_, err := c.cutFile(f, budget, until)
		return err
	}
	for budget > 0 && !f.frozen && !f.empty() && f.next() <= until {
		g, limit := p.oldest()
		// What the kernel wrote to two of them, found at once, has one number.
		n, err := c.cutFile(g, budget, min(until, max(limit-1, g.next())))
		if err != nil {
			return err
		}
		budget -= n
	}
	return nil
}

// next is the sequence number of f's next item, more than any if none waits.
func (f *file) next() uint64 {
	if f.empty() {
		return math.MaxUint64
	}
	return f.q[f.head].seq
}

// oldest returns the file of p whose next item is the oldest, and where the next item of
// another one stands. It forgets those that have left p and have nothing of it waiting.
func (p *path) oldest() (first *file, limit uint64) {
	limit = math.MaxUint64
	kept := p.users[:0]
	for _, f := range p.users {
		if f.path != p && f.empty() {
			continue
		}
		kept = append(kept, f)
		switch seq := f.next(); {
		case f.frozen:
		case first == nil:
			first = f
		case seq < first.next():
			first, limit = f, first.next()
		default:
			limit = min(limit, seq)
		}
	}
	clear(p.users[len(kept):])
	p.users = kept
	return first, limit
}

// setPath makes p the newest path that f was opened with.
func (f *file) setPath(p *path) {
	if f.path == p {
		return
	}
	if f.path != nil {
		f.path.files--
	}
	if p != nil {
		p.files++
		p.use(f)
	}
	f.path = p
}

// use adds f to the users, once.
func (p *path) use(f *file) {
	for _, u := range p.users {
		if u == f {
			return
		}
	}
	if len(p.users) > 2*p.files+8 { // those that left are still among them
		p.oldest()
	}
	p.users = append(p.users, f)
}
