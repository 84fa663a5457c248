package mount

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"ftfuse/internal/failpoint"
)

// openBackings returns the backing ids up to most that the newest worker's connection has,
// and gives them up.
func (r *rig) openBackings(most int32) (ids []int32) {
	r.t.Helper()
	pids := r.readies()
	pid := pids[len(pids)-1]
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(r.t, err)
	for _, e := range list {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name())); to != "/dev/fuse" {
			continue
		}
		var fd int
		fmt.Sscan(e.Name(), &fd)
		pidfd, err := unix.PidfdOpen(pid, 0)
		must(r.t, err)
		defer unix.Close(pidfd)
		dev, err := unix.PidfdGetfd(pidfd, fd, 0)
		must(r.t, err)
		defer unix.Close(dev)
		for id := int32(1); id <= most; id++ {
			const backingClose = 0x4004e502 // FUSE_DEV_IOC_BACKING_CLOSE
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), backingClose, uintptr(unsafe.Pointer(&id))); errno == 0 {
				ids = append(ids, id)
			}
		}
		return ids
	}
	r.t.Fatalf("worker %d has no /dev/fuse", pid)
	return nil
}

// TestABackingIDThatNobodyNotedIsGivenUp: a worker tries a backing file of its own at its
// start and was killed between the first id for a program and its being noted. The next one
// took the id after the newest noted for that, which was the one that had been tried.
func TestABackingIDThatNobodyNotedIsGivenUp(t *testing.T) {
	needPassthrough(t)
	r := newRigStopped(t, "")
	r.held = true
	r.env = []string{failpoint.Env + "=mount/backing=kill"}
	r.start()
	fd, err := syscall.Open(r.path("f"), syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT, 0o644)
	must(t, err)
	r.awaitReadies(2)
	if _, err := syscall.Write(fd, []byte("line\n")); err != nil {
		t.Fatal(err)
	}
	must(t, syscall.Close(fd))
	_, err = os.Stat(r.path("f")) // answered after the RELEASE
	must(t, err)
	if ids := r.openBackings(50); len(ids) > 0 {
		t.Errorf("backing ids %v are left; their spool files stay", ids)
	}
	r.stop()
	r.wantDelivered("f", "line\n")
}
