package record

// Free returns how many bytes a record of a writer that is known may have to fit this
// batch; it can be below zero.
func (b *Builder) Free() int {
	return b.max - max(len(b.buf), HeaderSize) - len(b.heads) - headBound
}

// Space returns n bytes behind the last record for the caller to fill, so that what is
// read from a file need not be copied; AddSpace makes records of them. They are good
// until the next Space, Add, Seal or Reset. It returns nil when n bytes do not fit:
// Seal the batch, then ask again. To an empty batch it returns nil only for more than
// a batch can ever have.
func (b *Builder) Space(n int) []byte {
	if !b.reserve(n + headBound + newWriterBound) {
		return nil
	}
	end := len(b.buf)
	return b.buf[end : end+n : end+n]
}

// AddSpace makes the next n bytes of what Space returned a record, as Add does, without
// copying them. When it returns false the bytes are still where they were, until the
// batch is sealed.
func (b *Builder) AddSpace(a *Attr, n int) bool {
	bound, same := b.bound(a, n)
	end := len(b.buf)
	if bound < 0 || end+n > cap(b.buf) {
		return false
	}
	if total := end + len(b.heads) + bound; total > b.max && (b.records > 0 || total > MaxBatch) {
		return false
	}
	b.head(a, n, same)
	b.buf = b.buf[:end+n]
	b.records++
	return true
}
