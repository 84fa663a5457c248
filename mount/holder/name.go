package holder

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// setName gives this process the name of its command. The kernel named it after the file
// it was started from, which may be /proc/self/exe.
func setName() {
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0) // for ps(1) only
}

// tune makes the process small: from here on it does next to nothing.
func tune() {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(10)
	debug.FreeOSMemory()
	dropProgram()
}

// dropProgram takes the pages of the program that the start has touched out of this
// process; the few that are needed again are in the page cache.
func dropProgram() {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		var from, to uintptr
		if len(f) < 6 || f[5] != strings.Fields(self)[0] || strings.Contains(f[1], "w") {
			continue // what may be written has content of its own
		}
		if n, err := fmt.Sscanf(f[0], "%x-%x", &from, &to); n != 2 || err != nil {
			continue
		}
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
	}
}
