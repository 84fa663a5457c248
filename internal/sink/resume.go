package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"ftfuse/internal/output"
	"ftfuse/queue"
)

// load reads the series of earlier runs, and ends what a kill left in the middle.
func (r *rotor) load(ctx context.Context) error {
	var keys []string
	var all []*series
	r.q.Range(rotatePrefix, func(key string, value []byte) bool {
		s, err := parseSeries(value)
		if err != nil || s.key() != key {
			r.log.Error("the state of a rotated output file cannot be read: its rotated files are left alone", "key", key, "error", err)
			keys = append(keys, key)
			return true
		}
		all = append(all, s)
		return true
	})
	for _, s := range all {
		before := string(s.append(nil))
		known, err := r.resume(s)
		if err != nil {
			return fmt.Errorf("resume the rotation of output file %q: %w", s.path(), err)
		}
		if !known {
			keys = append(keys, s.key())
			continue
		}
		s.used = time.Now()
		r.series[s.path()] = s
		if string(s.append(nil)) != before {
			if err := r.submit(ctx, s, nil); err != nil {
				return err
			}
		}
	}
	if len(keys) == 0 {
		return nil
	}
	txn := &queue.Txn{}
	for _, key := range keys {
		txn.Set = append(txn.Set, queue.KV{Key: key})
	}
	if _, err := r.q.Submit(ctx, txn); err != nil {
		return fmt.Errorf("forget unused state: %w", err)
	}
	return nil
}

// resume compares a series with what is in its directory. known is false where there is
// nothing left to know.
func (r *rotor) resume(s *series) (known bool, err error) {
	o := r.outputOf(s)
	if o == nil && !slices.ContainsFunc(s.kept, func(k rotated) bool { return k.unpacked() }) {
		return false, nil // the configuration rotates it no more: what was kept is the operator's
	}
	root, err := r.roots.get(s.dir, &output.Perm{})
	if err != nil && o == nil {
		r.log.Warn("rotated output files are left as they are", "file", s.path(), "error", err)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	kept := s.kept[:0]
	for _, k := range s.kept {
		here, err := r.resumeOne(root, s, &k)
		if err != nil {
			return false, err
		}
		if here {
			r.table.retire(k.id)
			kept = append(kept, k)
		}
	}
	s.kept = kept
	if len(kept) > 0 || o != nil && s.last > 0 {
		return true, nil // else the numbers would begin anew
	}
	_, err = root.Stat(s.name)
	return err == nil && o != nil && o.Rotate.Every > 0, ignoreGone(err)
}

// resumeOne looks for one rotated file; here is false where it is gone, or was never made.
func (r *rotor) resumeOne(root *output.Root, s *series, k *rotated) (here bool, err error) {
	plain := rotatedName(s.name, k.number)
	is := func(name string, id output.ID) (bool, error) {
		info, err := root.Stat(name)
		if errors.Is(err, output.ErrRefused) {
			return false, nil
		}
		return err == nil && info.ID == id, ignoreGone(err)
	}
	if k.stage == stageNoted {
		whole, err := is(plain+k.codec.suffix(), k.packed)
		if err != nil {
			return false, err
		}
		if !whole { // the copy got no name
			k.stage, k.packed = stagePlain, output.ID{}
		} else {
			// Its bytes were on disk before its identity was noted; now its name is.
			if err := root.SyncDirOf(plain); err != nil {
				return false, err
			}
			if err := ignoreGone(root.Remove(plain, k.id)); err != nil {
				return false, err
			}
			k.stage, k.id, k.packed = stagePacked, k.packed, output.ID{}
			r.count.rotatedPacked.Add(1)
		}
	}
	return is(s.nameOf(k), k.id)
}
