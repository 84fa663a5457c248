package queue

import (
	"io/fs"
	"syscall"
)

// diskBytes is what the file system has allocated for a file.
func diskBytes(e fs.DirEntry) int64 {
	i, err := e.Info()
	if err != nil {
		return 0
	}
	if st, ok := i.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return i.Size()
}
