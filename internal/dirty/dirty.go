// Package dirty makes byte slices that were not set to zero. At the rates of a mount
// or a receiver, clearing a megabyte that is overwritten at once costs as much as
// checksumming it.
package dirty

import (
	"strings"
	"unsafe"
)

// Make returns an empty slice with room for at least n bytes of any content. Whoever
// makes it longer must write every byte before showing it to anyone.
//
// strings.Builder is the one way in the standard library to memory that is not
// cleared; the one-byte string that names it here goes no further.
func Make(n int) []byte {
	var b strings.Builder
	b.Grow(max(n, 1))
	b.WriteByte(0)
	return unsafe.Slice(unsafe.StringData(b.String()), b.Cap())[:0]
}
