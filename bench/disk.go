package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// measureDisk writes total bytes, a MiB at a time with an fdatasync after each, into a
// new file and then over it.
func measureDisk(dir string, total int64) (*Disk, error) {
	path := filepath.Join(dir, "disk")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("measure the disk: %w", err)
	}
	defer os.Remove(path)
	defer f.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * 31)
	}
	var mbs [2]float64
	for pass := range mbs {
		began := time.Now()
		for off := int64(0); off < total; off += int64(len(block)) {
			if _, err := f.WriteAt(block, off); err != nil {
				return nil, fmt.Errorf("measure the disk: write %s at offset %d: %w", path, off, err)
			}
			if err := syscall.Fdatasync(int(f.Fd())); err != nil {
				return nil, fmt.Errorf("measure the disk: sync %s: %w", path, err)
			}
		}
		mbs[pass] = float64(total) / 1e6 / time.Since(began).Seconds()
	}
	return &Disk{New: mbs[0], Reused: mbs[1]}, nil
}
