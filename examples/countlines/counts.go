package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"go.etcd.io/bbolt"

	"ftfuse/receive"
)

var (
	linesBucket = []byte("lines")    // host -> count, 8 bytes big endian
	stateBucket = []byte("state")    // positionKey -> receive.Position
	positionKey = []byte("position") // stored in the transaction that stores the counts
)

// counts is a bbolt file with the lines of each host. It is the Handler: Batch adds up in
// memory, Commit brings the sums and the position to disk in one transaction. So either
// both are there or neither, and Position tells the server where to go on.
type counts struct {
	db  *bbolt.DB
	new map[string]uint64 // since the last Commit
}

var _ receive.Handler = (*counts)(nil)

// openCounts opens the file at path, which one process may have at a time.
func openCounts(path string) (*counts, error) {
	if path == "" {
		return nil, errors.New("-db FILE is missing")
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open %s (does another countlines use it?): %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err1 := tx.CreateBucketIfNotExists(linesBucket)
		_, err2 := tx.CreateBucketIfNotExists(stateBucket)
		return errors.Join(err1, err2)
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &counts{db: db, new: map[string]uint64{}}, nil
}

// Position returns what the newest Commit stored.
func (c *counts) Position(context.Context) (at receive.Position, err error) {
	err = c.db.View(func(tx *bbolt.Tx) error {
		return at.UnmarshalBinary(tx.Bucket(stateBucket).Get(positionKey))
	})
	return at, err
}

// Batch counts the line ends of a batch.
func (c *counts) Batch(_ context.Context, b *receive.Batch) error {
	for {
		r, err := b.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if r.Flags&receive.Binary == 0 {
			c.new[r.Host] += uint64(bytes.Count(r.Data, []byte("\n")))
		}
	}
}

// Commit adds what was counted to what the file has, and stores the position with it.
func (c *counts) Commit(_ context.Context, at receive.Position) error {
	err := c.db.Update(func(tx *bbolt.Tx) error {
		lines := tx.Bucket(linesBucket)
		for host, n := range c.new {
			if v := lines.Get([]byte(host)); v != nil {
				n += binary.BigEndian.Uint64(v)
			}
			if err := lines.Put([]byte(host), binary.BigEndian.AppendUint64(nil, n)); err != nil {
				return err
			}
		}
		v, err := at.MarshalBinary()
		if err != nil {
			return err
		}
		return tx.Bucket(stateBucket).Put(positionKey, v)
	})
	if err != nil {
		return fmt.Errorf("store the counts: %w", err)
	}
	clear(c.new)
	return nil
}

// print writes a line for each host: its name and how many lines it sent.
func (c *counts) print(w io.Writer) error {
	return c.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(linesBucket).ForEach(func(host, n []byte) error {
			_, err := fmt.Fprintf(w, "%s %d\n", host, binary.BigEndian.Uint64(n))
			return err
		})
	})
}

// Close closes the file.
func (c *counts) Close() error { return c.db.Close() }
