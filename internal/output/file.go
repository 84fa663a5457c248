package output

import (
	"container/list"
	"fmt"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
)

var (
	fpAppend = failpoint.New("output/append")
	fpSync   = failpoint.New("output/sync")
	fpDirs   = failpoint.New("output/sync-dirs")
	fpSyncFS = failpoint.New("output/syncfs")
)

// maxVecs is how many pieces one call takes (IOV_MAX of the kernel, uio.h).
const maxVecs = 1024

// File is one open output file. Append, ReadAt and WriteAt belong to one goroutine at a
// time; Sync and Stat may run beside them.
type File struct {
	fd   int
	id   ID
	path string // when it was opened
	late int64  // bytes appended since the disk was last told to begin

	// Of the Cache, guarded by its mutex.
	slot *Slot // nil: none, or emptied
	pins int
	elem *list.Element // in Cache.lru
}

// ID returns the file's identity.
func (f *File) ID() ID { return f.id }

// Path returns the path it was opened by; the file may have been renamed since.
func (f *File) Path() string { return f.path }

// Append writes vecs at the end of the file as it is at that moment, whoever moved it:
// bytes that another process appended are never written over, and a file that was
// truncated gets no hole. It returns where the bytes landed and how many; it may write
// less than all, then the caller goes on with Skip.
//
// The kernel takes the end and writes under the inode's lock (RWF_APPEND). Offset -1
// moves the file position behind what was written, which tells where it landed
// (pwritev2(2)).
func (f *File) Append(vecs [][]byte) (at, n int64, err error) {
	if len(vecs) > maxVecs {
		vecs = vecs[:maxVecs]
	}
	if err := fpAppend.Inject(); err != nil {
		return 0, 0, fmt.Errorf("append to output file %q: %w", f.path, err)
	}
	for {
		wrote, err := unix.Pwritev2(f.fd, vecs, -1, unix.RWF_APPEND)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, 0, fmt.Errorf("append to output file %q: %w", f.path, err)
		}
		if wrote == 0 {
			return 0, 0, fmt.Errorf("append to output file %q: nothing was written", f.path)
		}
		end, err := unix.Seek(f.fd, 0, unix.SEEK_CUR)
		if err != nil {
			return 0, 0, fmt.Errorf("append to output file %q: find the end: %w", f.path, err)
		}
		f.begin(end, int64(wrote))
		return end - int64(wrote), int64(wrote), nil
	}
}

// beginEvery is how many appended bytes the disk is told of at a time.
const beginEvery = 2 << 20

// begin has the disk start with what was appended, n bytes more up to end: the next Sync
// then finds little to do. Half a second of a fast writer's bytes, written in one Sync,
// would hold up for 20 ms and more whoever else syncs a file there, as programs and a
// queue do. It decides nothing about durability.
func (f *File) begin(end, n int64) {
	if f.late += n; f.late >= beginEvery {
		_ = unix.SyncFileRange(f.fd, end-f.late, f.late, unix.SYNC_FILE_RANGE_WRITE) // advice; Sync tells errors
		f.late = 0
	}
}

// Skip returns vecs without their first n bytes. It leaves vecs as they are.
func Skip(vecs [][]byte, n int64) [][]byte {
	for len(vecs) > 0 && n >= int64(len(vecs[0])) {
		n -= int64(len(vecs[0]))
		vecs = vecs[1:]
	}
	if n > 0 {
		return append([][]byte{vecs[0][n:]}, vecs[1:]...)
	}
	return vecs
}

// ReadAt fills p from off; it returns what there is before the file's end.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, fmt.Errorf("read output file %q at %d: %w", f.path, off+int64(done), err)
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}

// WriteAt writes p at off, over what is there.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, fmt.Errorf("write output file %q at %d: %w", f.path, off+int64(done), err)
		}
		done += n
	}
	return done, nil
}

// Stat looks at the open file. Links is 0 once it was removed.
func (f *File) Stat() (Info, error) {
	info, _, err := statFd(f.fd)
	if err != nil {
		return Info{}, fmt.Errorf("look at open output file %q: %w", f.path, err)
	}
	return info, nil
}

// Sync brings the file's bytes and size to disk (fdatasync). After an error the bytes
// may be gone and a second Sync would not say so: stop.
func (f *File) Sync() error {
	if err := fpSync.Inject(); err != nil {
		return fmt.Errorf("sync output file %q: %w", f.path, err)
	}
	for {
		err := unix.Fdatasync(f.fd)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("sync output file %q: %w", f.path, err)
		}
		return nil
	}
}

// Close closes the file.
func (f *File) Close() error {
	if err := unix.Close(f.fd); err != nil {
		return fmt.Errorf("close output file %q: %w", f.path, err)
	}
	return nil
}
