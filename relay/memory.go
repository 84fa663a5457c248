package relay

import (
	"os"
	"runtime/debug"

	"ftfuse/config"
	"ftfuse/queue"
)

// A relay allocates a few megabytes for each that it passes on and keeps them for a moment
// only. With the runtime's default it collects garbage, gives memory back and faults it in
// again all the time; with this the heap grows further between collections, up to a limit.
const (
	gcPercent  = 400
	memoryBase = 64 << 20 // beside the queue's window and those of the connections
)

// limitMemory sets both for the process, unless the operator did.
func limitMemory(r *config.Relay) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit(r))
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// memoryLimit is memoryBase, what the queue keeps in memory, and the windows of the
// destinations that are used at once.
func memoryLimit(r *config.Relay) int64 {
	limit := int64(memoryBase + queue.DefaultMemoryBytes)
	for i := range r.Forwards {
		f := &r.Forwards[i]
		limit += int64(f.Window) * int64(max(len(f.Primary), 1))
	}
	return limit
}
