package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
)

// pathTable gives each path that a handle was opened with a number for the
// journal's entries, and keeps them in an append-only file so that recovery can
// name them. A record is length u32, id u32, CRC-32C u32 of the id and the path,
// then the path.
//
// It is safe for concurrent use.
type pathTable struct {
	mu    sync.RWMutex
	file  string
	f     *os.File
	size  int64
	next  uint32
	ids   map[string]uint32
	names map[uint32]*pathName
}

type pathName struct {
	path string
	refs int // open handles
}

const pathHeader = 12

// compactPaths is the size above which the table drops what nobody uses.
const compactPaths = 4 << 20

// openPaths reads the table. What follows a record that does not fit is cut off: a
// kill can have torn only the last one, and power loss loses names of entries whose
// bytes are then delivered under the file's own path.
func openPaths(path string) (*pathTable, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open path table: %w", err)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read path table %s: %w", path, err)
	}
	t := &pathTable{file: path, f: f, next: 1, ids: map[string]uint32{}, names: map[uint32]*pathName{}}
	for {
		id, name, n := parsePath(data[t.size:])
		if n == 0 {
			break
		}
		t.size += int64(n)
		t.ids[name] = id
		t.names[id] = &pathName{path: name}
		t.next = max(t.next, id+1)
	}
	if err := f.Truncate(t.size); err != nil {
		f.Close()
		return nil, fmt.Errorf("cut path table %s: %w", path, err)
	}
	return t, nil
}

func parsePath(b []byte) (id uint32, name string, n int) {
	if len(b) < pathHeader {
		return 0, "", 0
	}
	le := binary.LittleEndian
	size := le.Uint32(b)
	if size > 1<<16 || int(size) > len(b)-pathHeader {
		return 0, "", 0
	}
	end := pathHeader + int(size)
	id = le.Uint32(b[4:])
	if pathSum(id, b[pathHeader:end]) != le.Uint32(b[8:]) {
		return 0, "", 0
	}
	return id, string(b[pathHeader:end]), end
}

func pathSum(id uint32, name []byte) uint32 {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], id)
	return crc32.Update(crc32.Checksum(b[:], castagnoli), castagnoli, name)
}

func appendPath(b []byte, id uint32, name string) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(name)))
	b = le.AppendUint32(b, id)
	b = le.AppendUint32(b, pathSum(id, []byte(name)))
	return append(b, name...)
}

// acquire returns the id of path and keeps it until release.
func (t *pathTable) acquire(path string) (uint32, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id, ok := t.ids[path]; ok {
		t.names[id].refs++
		return id, nil
	}
	id := t.next
	if id == ^uint32(0) {
		return 0, errors.New("spool: the path table is full after four thousand million paths; stop the mount, drain it and remove its paths file")
	}
	rec := appendPath(nil, id, path)
	if _, err := t.f.WriteAt(rec, t.size); err != nil {
		return 0, fmt.Errorf("write path table: %w", err)
	}
	t.size += int64(len(rec))
	t.next++
	t.ids[path] = id
	t.names[id] = &pathName{path: path, refs: 1}
	return id, nil
}

func (t *pathTable) release(id uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.names[id]; n != nil {
		n.refs--
	}
}

// name is the path with an id, "" if it is lost.
func (t *pathTable) name(id uint32) string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n := t.names[id]; n != nil {
		return n.path
	}
	return ""
}

// fill sets the Path of each entry.
func (t *pathTable) fill(entries []Entry) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var last uint32
	var path string
	for i := range entries {
		if id := entries[i].PathID; id != last {
			last, path = id, ""
			if n := t.names[id]; n != nil {
				path = n.path
			}
		}
		entries[i].Path = path
	}
}

// full reports whether a compaction is worth its while.
func (t *pathTable) full() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.size > compactPaths
}

// compact drops the names that no open handle and no entry of live uses, and
// writes the rest to a new file, which replaces the old one in one rename.
func (t *pathTable) compact(live map[uint32]bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var data []byte
	for id, n := range t.names {
		if n.refs > 0 || live[id] {
			data = appendPath(data, id, n.path)
		}
	}
	if int64(len(data)) > t.size/2 {
		return nil
	}
	tmp := t.file + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("rewrite path table: %w", err)
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, t.file)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("rewrite path table %s: %w", t.file, err)
	}
	for id, n := range t.names {
		if n.refs <= 0 && !live[id] {
			delete(t.names, id)
			delete(t.ids, n.path)
		}
	}
	t.f.Close()
	t.f, t.size = f, int64(len(data))
	return nil
}

func (t *pathTable) close() error { return t.f.Close() }
