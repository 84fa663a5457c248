package record

import (
	"strings"
	"unsafe"
)

// makeDirty returns an empty slice with room for at least n bytes that were not set
// to zero: at the rates of a mount, clearing a megabyte that is overwritten at once
// costs as much as checksumming it. strings.Builder is the one way in the standard
// library to such memory; the one-byte string that names it goes no further.
func makeDirty(n int) []byte {
	var b strings.Builder
	b.Grow(max(n, 1))
	b.WriteByte(0)
	return unsafe.Slice(unsafe.StringData(b.String()), b.Cap())[:0]
}
