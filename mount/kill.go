package mount

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// beingKilled reports whether a SIGKILL is pending for thread tid, or it is gone. A
// fatal signal shows there as SIGKILL (kernel/signal.c, complete_signal).
func beingKilled(tid uint32) bool {
	if tid == 0 {
		return false // of another pid namespace
	}
	text, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return os.IsNotExist(err) || err == syscall.ESRCH
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && mask&(1<<(uint(syscall.SIGKILL)-1)) != 0 {
			return true
		}
	}
	return false
}
