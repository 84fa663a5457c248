package relay

import (
	"os"
	"runtime"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"ftfuse/config"
	"ftfuse/queue"
)

// A relay allocates a few megabytes for each that it passes on and keeps them for a moment
// only. Left alone, the runtime's heap follows what is alive at the moment up and down: it
// collects, gives memory back and faults it in again all the time.
const (
	memoryBase   = 64 << 20 // beside the queue's window, those of the connections and the ballast
	ballastBytes = 64 << 20
	hugeBytes    = 160 << 20 // more than the heap of a busy relay without the ballast
)

// limitMemory sets up the heap of the process, unless the operator did.
func limitMemory(r *config.Relay) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetMemoryLimit(memoryLimit(r))
	if os.Getenv("GOGC") == "" {
		steadyHeap()
	}
}

// memoryLimit is memoryBase, what the queue keeps in memory, and the windows of the
// destinations that are used at once; the ballast is counted and never resident.
func memoryLimit(r *config.Relay) int64 {
	limit := int64(memoryBase + ballastBytes + queue.DefaultMemoryBytes)
	for i := range r.Forwards {
		f := &r.Forwards[i]
		limit += int64(f.Window) * int64(max(len(f.Primary), 1))
	}
	return limit
}

// ballast counts as alive for the collector, which so lets the heap grow by as much again
// before it collects, and is never written to, so that it takes no memory.
var ballast []byte

// steadyHeap makes the ballast and, behind it, has the kernel use huge pages where the heap
// will be: a fault then brings 2 MiB and not 4 KiB. Once for the process, early: memory that
// was in use before would be cleared, and so be resident.
var steadyHeap = sync.OnceFunc(func() {
	ballast = make([]byte, ballastBytes)
	area := make([]byte, hugeBytes)
	_ = unix.Madvise(area, unix.MADV_HUGEPAGE) // advice
	runtime.KeepAlive(area)
	runtime.GC() // the heap has the area from here on
})
