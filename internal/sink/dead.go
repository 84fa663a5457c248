package sink

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ftfuse/internal/batch"
)

// Reasons of dead letters besides those of internal/output.
const (
	reasonMalformed = "malformed-batch"
	reasonRedo      = "redo-mismatch"
)

// letter is the first line of a dead letter's file, as JSON; the bytes follow it.
type letter struct {
	Version int    `json:"version"`
	Reason  string `json:"reason"`
	Error   string `json:"error"`
	Batch   string `json:"batch"` // its id
	Content string `json:"content"`
	Dir     string `json:"dir,omitempty"`  // of the output
	File    string `json:"file,omitempty"` // the name that was refused
	Host    string `json:"host,omitempty"` // who gave the batch
	Records uint64 `json:"records"`
	Bytes   int    `json:"bytes"`
	Time    string `json:"time"` // when it was put here, UTC
}

// Contents of a dead letter.
const (
	contentBatch  = "batch"  // the sealed bytes, docs/protocol.md
	contentOutput = "output" // what would have been appended to the file
)

const letterVersion = 1

// deadDir is where dead letters are put.
type deadDir struct {
	dir   string
	count *counters
}

// BuryBatch makes a dead letter below dir of a batch that can never be read, for a role that
// has no output files. It is on disk when BuryBatch returns.
func BuryBatch(dir string, b batch.Sealed, from string, why error) error {
	d := &deadDir{dir: dir, count: &counters{}}
	return d.put(b.ID, -1, malformed(b, from, why), b.Data)
}

func malformed(b batch.Sealed, from string, why error) letter {
	return letter{Reason: reasonMalformed, Error: why.Error(), Content: contentBatch, Host: from, Records: uint64(b.Records)}
}

// put writes one dead letter and returns when it is on disk. A letter of the same name
// is there already when its batch came, or was redone, again: it is left alone.
func (d *deadDir) put(id batch.ID, part int, l letter, content ...[]byte) error {
	name := strings.NewReplacer("/", "-").Replace(id.String())
	if part >= 0 {
		name = fmt.Sprintf("%s-%d", name, part)
	}
	path := filepath.Join(d.dir, name+".dead")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.MkdirAll(d.dir, 0o750); err != nil {
		return fmt.Errorf("make dead letter directory: %w", err)
	}
	l.Version, l.Batch, l.Time = letterVersion, id.String(), time.Now().UTC().Format(time.RFC3339)
	for _, c := range content {
		l.Bytes += len(c)
	}
	if err := writeLetter(d.dir, path, &l, content); err != nil {
		return err
	}
	d.count.addDead(l.Reason, l.Records, l.Bytes)
	return nil
}

func writeLetter(dir, path string, l *letter, content [][]byte) (err error) {
	head, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode dead letter: %w", err)
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return fmt.Errorf("write dead letter: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write dead letter %q: %w", path, err), ignoreClosed(f.Close()))
		}
	}()
	for _, b := range append([][]byte{append(head, '\n')}, content...) {
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(dir)
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// kept returns how many dead letters lie in dir.
func (d *deadDir) kept() (int, error) {
	entries, err := os.ReadDir(d.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("list dead letters: %w", err)
	}
	n := 0
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".dead") {
			n++
		}
	}
	return n, nil
}
