package kernel

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestAKilledReaderLosesNoRequestToAFault: workers were killed while the kernel copied a
// request into a buffer that had never been touched; its program got EIO, about once in ten
// runs of mount's TestKilledWorkerUnderLoad with -race and three at a time.
func TestAKilledReaderLosesNoRequestToAFault(t *testing.T) {
	buf := bufferOf(reqPool.New())
	if len(buf) != bufSize {
		t.Fatalf("a buffer of %d bytes, want %d", len(buf), bufSize)
	}
	first := uintptr(unsafe.Pointer(&buf[0])) &^ 4095
	present := make([]byte, (uintptr(unsafe.Pointer(&buf[len(buf)-1]))-first)/4096+1)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, first, uintptr(len(present))*4096, uintptr(unsafe.Pointer(&present[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for i, p := range present {
		if p&1 == 0 {
			t.Fatalf("page %d of %d is not present", i, len(present))
		}
	}
}
