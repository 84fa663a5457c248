package mount

import (
	"context"
	"os"
	"runtime/debug"
	"time"

	"ftfuse/config"
)

// memoryBase and what may be in flight is what the garbage collector aims to stay below: it
// keeps a role with one destination and its default window under 256 MiB at full load.
const memoryBase = 128 << 20

// gcPercent lets the heap grow further between collections than the default does, up to
// that: 12 % less CPU for each write of 10 bytes (BenchmarkAppend).
const gcPercent = 400

// limitMemory sets memoryLimit for the process, unless the operator did.
func limitMemory(m *config.Mount) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit(m))
	}
}

// memoryLimit is memoryBase and the windows of the destinations that are used at once.
func memoryLimit(m *config.Mount) int64 {
	limit := int64(memoryBase)
	if len(m.RuleOutputs()) > 0 {
		limit += outputMemory
	}
	for i := range m.Forwards {
		f := &m.Forwards[i]
		limit += int64(f.Window) * int64(max(len(f.Primary), 1))
	}
	return limit
}

// restAfter is how long nothing must have been written and the queue been empty before
// the memory of the last load is given back.
const restAfter = 3 * time.Second

// restMemory gives the heap back to the system once after each load.
func (r *role) restMemory(ctx context.Context) error {
	tick := time.NewTicker(restAfter)
	defer tick.Stop()
	freed, seen := r.store.Next(), r.store.Next()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		next := r.store.Next()
		if next == seen && next != freed && r.queue.Room() == int64(r.now.Load().QueueFor(config.RoleMount).MaxBytes) {
			debug.FreeOSMemory()
			freed = next
		}
		seen = next
	}
}
