package sink

import (
	"context"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"ftfuse/internal/failpoint"
	"ftfuse/internal/output"
)

var fpPacking = failpoint.New("rotate/packing") // a part is compressed, in a file without a name

// codec is what a rotated file is compressed with; the numbers are stored.
type codec byte

const (
	codecNone codec = iota
	codecGzip
	codecZstd
)

// codecOf returns the codec of that name; "none" for others, which config refuses.
func codecOf(name string) codec {
	switch name {
	case "gzip":
		return codecGzip
	case "zstd":
		return codecZstd
	}
	return codecNone
}

// suffix is what a compressed file's name ends with.
func (c codec) suffix() string {
	switch c {
	case codecGzip:
		return ".gz"
	case codecZstd:
		return ".zst"
	}
	return ""
}

// packChunk is how much is read at once.
const packChunk = 256 << 10

// pack writes the first size bytes of from to w, compressed, with a checksum of the codec's own.
func (c codec) pack(ctx context.Context, w io.Writer, from *output.File, size int64) error {
	var enc io.WriteCloser
	var err error
	if c == codecGzip {
		enc, err = gzip.NewWriterLevel(w, gzip.DefaultCompression)
	} else {
		enc, err = zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}
	if err != nil {
		return fmt.Errorf("begin to compress %q: %w", from.Path(), err)
	}
	buf := make([]byte, packChunk)
	for at := int64(0); at < size && err == nil; {
		var n int
		n, err = from.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		switch {
		case err != nil:
		case n == 0:
			err = fmt.Errorf("compress %q: it has %d bytes, had %d", from.Path(), at, size)
		case ctx.Err() != nil:
			err = ctx.Err()
		default:
			_, err = enc.Write(buf[:n])
		}
		if err == nil && at == 0 {
			err = fpPacking.Inject()
		}
		at += int64(n)
	}
	if cerr := enc.Close(); err == nil {
		err = cerr
	}
	return err
}
