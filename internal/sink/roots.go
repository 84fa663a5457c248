package sink

import (
	"errors"
	"fmt"
	"sync"

	"ftfuse/internal/output"
)

// roots opens the output directories as they are needed. It is safe for concurrent use.
type roots struct {
	o    output.Options
	mu   sync.Mutex
	open map[string]*output.Root
	idle map[string]*output.Root // without their lock: no output is for them; still open, as a batch may be on its way
}

func newRoots() *roots {
	return &roots{open: map[string]*output.Root{}, idle: map[string]*output.Root{}}
}

// get returns the root of dir, locked. Where it is made, it is p's.
func (r *roots) get(dir string, p *output.Perm) (*output.Root, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if root := r.open[dir]; root != nil {
		return root, nil
	}
	root := r.idle[dir]
	var err error
	if root != nil {
		err = root.Lock()
	} else {
		o := r.o
		o.Perm = *p
		root, err = output.OpenRoot(dir, o)
	}
	if err != nil {
		return nil, err
	}
	delete(r.idle, dir)
	r.open[dir] = root
	return root, nil
}

// retire gives up the locks of the directories that keep is not true of, so that another
// process may have them.
func (r *roots) retire(keep func(dir string) bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for dir, root := range r.open {
		if keep(dir) {
			continue
		}
		delete(r.open, dir)
		r.idle[dir] = root
		errs = append(errs, root.Unlock())
	}
	return errors.Join(errs...)
}

// all returns the roots that are open, the idle ones too: something may be written there.
func (r *roots) all() []*output.Root {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*output.Root, 0, len(r.open)+len(r.idle))
	for _, root := range r.open {
		all = append(all, root)
	}
	for _, root := range r.idle {
		all = append(all, root)
	}
	return all
}

func (r *roots) close() error {
	var errs []error
	for _, root := range r.all() {
		errs = append(errs, root.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close output directories: %w", err)
	}
	return nil
}
