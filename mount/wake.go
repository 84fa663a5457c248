package mount

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wakeSignal ends a read(2) of the request loop. Nothing else uses it.
const wakeSignal = syscall.Signal(36) // a real-time signal that the C library leaves alone

// wakeEvery is how often the loop is woken until it has ended: between a look at leaving
// and its read(2) it does not notice.
const wakeEvery = 5 * time.Millisecond

// wake makes the loop look up from its read(2), in which it may wait for hours: the kernel
// has no notification that gives it something to read (FUSE_NOTIFY_RETRIEVE does so for a
// regular file that the kernel knows, and there may be none), and a request made by this
// process, through the mount point, would have to be answered by the successor, which waits
// for the end of this process.
func (s *server) wake() {
	if err := interrupting(wakeSignal); err != nil {
		s.log.Error("the request loop ends with its next request only", "err", err)
		<-s.served
		return
	}
	tick := time.NewTicker(wakeEvery)
	defer tick.Stop()
	for {
		for _, tid := range readersOfFUSE() {
			_ = unix.Tgkill(os.Getpid(), tid, wakeSignal)
		}
		select {
		case <-s.served:
			return
		case <-tick.C:
		}
	}
}

// interrupting makes a signal end the system call that it meets (EINTR). The runtime's own
// handlers have it begin again.
func interrupting(sig syscall.Signal) error {
	signal.Notify(make(chan os.Signal, 1), sig) // the runtime's handler
	var act struct {                            // struct sigaction of linux/arch/{x86,arm64}/include/uapi/asm/signal.h
		handler, flags, restorer, mask uintptr
	}
	const restart, maskSize = 0x10000000, 8
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&act)), maskSize, 0, 0); errno != 0 {
		return fmt.Errorf("look at the handler of signal %d: %w", sig, errno)
	}
	act.flags &^= restart
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, maskSize, 0, 0); errno != 0 {
		return fmt.Errorf("change the handler of signal %d: %w", sig, errno)
	}
	return nil
}

// readersOfFUSE returns the threads of this process that wait in read(2) of /dev/fuse
// (proc_pid_syscall(5)).
func readersOfFUSE() (tids []int) {
	list, _ := os.ReadDir("/proc/self/task")
	for _, e := range list {
		text, err := os.ReadFile("/proc/self/task/" + e.Name() + "/syscall")
		f := strings.Fields(string(text))
		if err != nil || len(f) < 2 || f[0] != strconv.Itoa(unix.SYS_READ) {
			continue
		}
		fd, err := strconv.ParseUint(f[1], 0, 32)
		if err != nil {
			continue
		}
		if to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil || to != "/dev/fuse" {
			continue
		}
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids
}
