package receive

import (
	"context"
	"errors"
	"fmt"
	"io"

	"ftfuse/queue"
	"ftfuse/transport"
)

// importFrom takes the batches of an export (queue.Export) as if a peer had sent them: what
// is here already is written once. On an error what was counted is taken; to import the
// same again does no harm.
func (r *Receiver) importFrom(ctx context.Context, in io.Reader) (queue.Imported, error) {
	var sum queue.Imported
	x, err := queue.NewExportReader(in)
	if err != nil {
		return sum, err
	}
	from := transport.Peer{Role: "import", Host: r.c.Host, Addr: "ftfuse queue import"}
	for {
		b, err := x.Next()
		if errors.Is(err, io.EOF) {
			sum.Unreadable = x.Total.Unreadable
			return sum, r.q.Flush(ctx)
		}
		if err != nil {
			return sum, errors.Join(err, r.q.Flush(ctx))
		}
		// A commit that fails stops the queue, which Flush says.
		v, answered := r.handler.take(ctx, from, b, func(transport.Verdict) {})
		switch {
		case answered:
			sum.Batches++
			sum.Records += uint64(b.Records)
			sum.Payload += b.Payload
			sum.Bytes += uint64(len(b.Data))
		case v.Code == transport.Conflict:
			sum.Conflicts = append(sum.Conflicts, b.ID)
		default:
			return sum, errors.Join(fmt.Errorf("import batch %v: %v: %s", b.ID, v.Code, v.Text), r.q.Flush(ctx))
		}
	}
}
