package plugin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"ftfuse/internal/output"
	"ftfuse/internal/template"
)

// target is the file that gets the standard output of a plugin: the child writes to it
// itself, behind what is there, so that it goes on when the role is killed.
type target struct {
	p    *Plugin
	name *template.Renderer // nil: there is none
	root *output.Root       // once open
	now  string             // name of the file that is open
	id   output.ID
	file *os.File     // the child's
	own  *output.File // the same, opened apart: that a child was told of a failed write-back hides it from nobody else
}

// errSync is in the chain of an error of a sync.
var errSync = errors.New("sync the output of a plugin")

func newTarget(p *Plugin, zone *time.Location) (*target, error) {
	t := &target{p: p}
	if p.Dir == "" || p.File == "" {
		return t, nil
	}
	if !filepath.IsAbs(p.Dir) {
		return nil, fmt.Errorf("the directory %q of its output is not an absolute path", p.Dir)
	}
	c, err := template.Compile(template.File, p.File, p.Time)
	if err != nil {
		return nil, err
	}
	if c.Fields()&^template.Time != 0 {
		return nil, fmt.Errorf("file %q: no record belongs to what a plugin prints: only %%T may stand there", p.File)
	}
	t.name = c.Bind(zone)
	return t, nil
}

func (t *target) render(now time.Time) string {
	return string(t.name.Append(nil, &template.Values{Time: now.UnixNano()}, nil))
}

// open opens the file for a child; nil without an error: there is none.
func (t *target) open(now time.Time) (*os.File, error) {
	t.close()
	if t.name == nil {
		return nil, nil
	}
	if t.root == nil {
		o := t.p.Files
		o.NoLock = true // the role's other outputs may have the directory; a child appends
		root, err := output.OpenRoot(t.p.Dir, o)
		if err != nil {
			return nil, err
		}
		t.root = root
	} else if err := t.root.Revive(); err != nil {
		return nil, err
	}
	name := t.render(now)
	f, err := t.root.OpenAs(name, &t.p.Files.Perm)
	if err != nil {
		return nil, err
	}
	t.now, t.id, t.own = name, f.ID(), f
	if t.file, err = f.Appender(); err != nil {
		return nil, err
	}
	if err := t.root.SyncDirs(); err != nil {
		return nil, fmt.Errorf("%w: %w", errSync, err)
	}
	return t.file, nil
}

// stale reports whether another file is to be written to by now: the name has changed with
// the time, or is another file's.
func (t *target) stale(now time.Time) bool {
	if t.file == nil {
		return false
	}
	if t.render(now) != t.now {
		return true
	}
	info, err := t.root.Stat(t.now)
	return err != nil || info.ID != t.id
}

// sync brings what the child has written to disk.
func (t *target) sync() error {
	if err := t.own.Sync(); err != nil {
		return fmt.Errorf("%w: %w", errSync, err)
	}
	return nil
}

// close closes the file.
func (t *target) close() {
	if t.file != nil {
		t.file.Close()
		t.file = nil
	}
	if t.own != nil {
		t.own.Close()
		t.own = nil
	}
}

// end gives everything back.
func (t *target) end() {
	t.close()
	if t.root != nil {
		_ = t.root.Close() // it is read from only
		t.root = nil
	}
}
