package forward

import (
	"context"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// store is what a Forwarder needs of the queue.
type store interface {
	Cursor(name string) (cursor, error)
	Submit(ctx context.Context, t *queue.Txn) (queue.Status, error)
	Get(key string) ([]byte, bool)
	Range(prefix string, fn func(key string, value []byte) bool)
	Stats() queue.Stats
	List(ctx context.Context, cursor string, fn func(queue.Listed) error) error
	Lanes() []batch.Lane
	Delivered(lane batch.Lane) batch.Ranges
}

// cursor is a consumer of the queue; see queue.Cursor.
type cursor interface {
	NextHead(ctx context.Context) (queue.Head, error)
	Fetch(ctx context.Context, seq uint64) (queue.Item, bool, error)
	Ack(seq uint64)
	Release(seq uint64)
	Return(seq uint64)
	Needs(seq uint64) bool
	Rewind()
}

// client is a connection to one destination; see transport.Client.
type client interface {
	Run(ctx context.Context) error
	Drain(ctx context.Context) error
	Stats() transport.ClientStats
	Recall(seqs ...uint64) []transport.RecalledBatch
	Forget(seqs ...uint64)
}

// realStore is a queue.Queue as a store.
type realStore struct{ *queue.Queue }

// Cursor returns the cursor called name.
func (s realStore) Cursor(name string) (cursor, error) {
	c, err := s.Queue.Cursor(name)
	if err != nil {
		return nil, err
	}
	return c, nil
}

var (
	_ store  = realStore{}
	_ cursor = (*queue.Cursor)(nil)
	_ client = (*transport.Client)(nil)
)
