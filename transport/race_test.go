//go:build race

package transport

// The race detector takes several times the memory.
func init() { memoryCounts = false }
