package forward

import (
	"ftfuse/internal/batch"
)

// Former returns, of a batch that was sealed again under id (see Options.Relabel), under which
// id it was in the queue q before. It is known at least until the new one is final.
func Former(q interface {
	Get(key string) ([]byte, bool)
},
) func(id batch.ID) (old batch.ID, ok bool) {
	return func(id batch.ID) (old batch.ID, ok bool) {
		value, ok := q.Get(relabelKey(id))
		if !ok {
			return old, false
		}
		old, err := batch.ParseID(value)
		return old, err == nil
	}
}
