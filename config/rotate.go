package config

import "time"

// Rotate says when an output file is rotated and what becomes of those that were; see
// sink.Rotate. The zero value rotates nothing.
type Rotate struct {
	Size     Size
	Every    time.Duration
	Keep     int // 0: all
	Compress RotateCodec
}

// RotateCodec names what rotated files are compressed with.
type RotateCodec string

// Values of [Rotate].Compress; "" is none, too.
const (
	RotatePlain RotateCodec = "none"
	RotateGzip  RotateCodec = "gzip"
	RotateZstd  RotateCodec = "zstd"
)

// Limits of a rotation.
const (
	minRotate      = 4 * KiB
	maxRotate      = 1024 * TiB
	minRotateEvery = time.Second
	maxRotateEvery = 366 * 24 * time.Hour
	maxRotateKeep  = 10_000
)

func (r *Rotate) decode(t *table) {
	if t == nil {
		return
	}
	t.size("size", minRotate, maxRotate, &r.Size)
	t.duration("every", minRotateEvery, maxRotateEvery, &r.Every)
	t.count("keep", 0, maxRotateKeep, &r.Keep)
	enum(t, "compress", &r.Compress, RotatePlain, RotateGzip, RotateZstd)
	t.done()
	_, size := t.m["size"]
	_, every := t.m["every"]
	if !size && !every {
		t.ps.add(ErrMissing, t.path, `write rotate = { size = "1GiB" }, every = "24h", or both`, "%s says neither when nor at what size", plainKey(t.path))
	}
}
