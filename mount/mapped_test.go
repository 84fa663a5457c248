package mount

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"ftfuse/internal/status"
)

// Shared writable mappings of a file that the kernel writes to: see TestSharedWritableMappings.

// storeAt maps the first page of f, shared, stores a byte and unmaps it.
func storeAt(t *testing.T, f *os.File, at int) {
	t.Helper()
	b, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	must(t, err)
	b[at] = 'y'
	must(t, syscall.Munmap(b))
}

// TestStoresIntoTheReadbackAreSaid: what was captured and is not punched out yet, in a file
// that is too small for that, and in one that the daemon itself wrote over.
func TestStoresIntoTheReadbackAreSaid(t *testing.T) {
	needPassthrough(t)
	for _, over := range []bool{false, true} {
		t.Run(fmt.Sprintf("overwritten=%v", over), func(t *testing.T) {
			r := newRig(t, "")
			f := appender(t, r.path("a"))
			for range 10 {
				put(t, f, "a line\n")
			}
			must(t, f.Sync())
			open := func() *os.File {
				g, err := os.OpenFile(r.path("a"), os.O_RDWR, 0)
				must(t, err)
				return g
			}
			g := open()
			if over {
				_, err := g.WriteAt([]byte("A"), 7)
				must(t, err)
			}
			put(t, f, "more\n")
			must(t, f.Sync())
			must(t, g.Close())
			must(t, open().Close())
			if r.logged("shared mapping") {
				t.Error("nobody stored anything")
			}
			g = open()
			storeAt(t, g, 3)
			must(t, g.Close())
			r.awaitLog("stored into a shared mapping")
			if !r.logged("path=a ") {
				t.Error("the file is not named")
			}
			st, err := r.status()
			must(t, err)
			if !slices.ContainsFunc(st.Counters, func(c status.Counter) bool { return c.Name == "mapped_store_bytes" && c.Value > 0 }) {
				t.Errorf("not counted: %+v", st.Counters)
			}
			f.Close()
			r.stop()
			if got := r.delivered()["a"]; !strings.HasPrefix(got, strings.Repeat("a line\n", 10)) || strings.Contains(got, "y") {
				t.Errorf("delivered %q", got)
			}
		})
	}
}

// TestAMappingThatOutlivesItsDescriptorIsSaid: the kernel has the mapping hold the spool file,
// and tells of nothing when it ends.
func TestAMappingThatOutlivesItsDescriptorIsSaid(t *testing.T) {
	needPassthrough(t)
	r := newRig(t, "")
	f := appender(t, r.path("a"))
	put(t, f, "a line\n")
	g, err := os.OpenFile(r.path("a"), os.O_RDWR, 0)
	must(t, err)
	b, err := syscall.Mmap(int(g.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	must(t, err)
	if r.logged("mapped shared") {
		t.Error("it is not closed")
	}
	must(t, g.Close())
	r.awaitLog("keeps it mapped shared")
	must(t, syscall.Munmap(b))
	f.Close()
	r.stop()
	r.wantDelivered("a", "a line\n")
}

// TestAMappingOverAWorkerIsSaid: a new worker does not know what the bytes were.
func TestAMappingOverAWorkerIsSaid(t *testing.T) {
	needPassthrough(t)
	r := newHeldRig(t, "", "")
	f := appender(t, r.path("a"))
	put(t, f, "a line\n")
	must(t, f.Sync())
	g, err := os.OpenFile(r.path("a"), os.O_RDWR, 0)
	must(t, err)
	r.killWorker()
	r.awaitLog("while the worker changed")
	storeAt(t, g, 3)
	must(t, g.Close())
	r.awaitLog("stored into a shared mapping")
	f.Close()
	r.stop()
	r.wantDelivered("a", "a line\n")
}
