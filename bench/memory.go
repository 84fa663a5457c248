package bench

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Memory is what it costs to use free memory, in seconds for a GB: the first time, and right
// after that. On a virtual machine that gives free memory back to its host the first use
// waits for the host, and whoever happens to need the page pays: on the machine of the
// README's figures twenty times what writing the page to a file costs otherwise.
type Memory struct {
	First float64 `json:"first_s_gb"`
	Again float64 `json:"again_s_gb"`
}

// measureMemory touches bytes of memory twice.
func measureMemory(bytes int64) (*Memory, error) {
	var m Memory
	for _, to := range []*float64{&m.First, &m.Again} {
		began := time.Now()
		if err := touch(bytes); err != nil {
			return nil, err
		}
		*to = time.Since(began).Seconds() / float64(bytes) * 1e9
	}
	return &m, nil
}

// touch uses bytes of free memory once and gives it back: what is allocated next needs
// nothing from the host.
func touch(bytes int64) error {
	b, err := unix.Mmap(-1, 0, int(bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("use %d bytes of memory before a run: %w", bytes, err)
	}
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // faster; without it as well
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("give memory back before a run: %w", err)
	}
	return nil
}

// spare is how much memory a run of so many bytes of lines may take anew: they stand in the
// spool, in the queues and in the output. At most half of what is free.
func spare(bytes int64) (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("ask for free memory: %w", err)
	}
	return min(4*bytes, int64(info.Freeram)*int64(info.Unit)/2), nil
}

// reportingOrder is the size, as a power of two of pages, from which Linux gives free memory
// back to the host (mm/page_reporting.c). neverReported is above the largest there is.
const (
	reportingOrder = "/sys/module/page_reporting/parameters/page_reporting_order"
	neverReported  = "11"
)

// holdMemory keeps the machine from giving free memory back to its host until restore. Where
// it never does, it does nothing.
func holdMemory() (restore func() error, err error) {
	text, err := os.ReadFile(reportingOrder)
	if errors.Is(err, os.ErrNotExist) {
		return func() error { return nil }, nil
	}
	if err == nil {
		err = os.WriteFile(reportingOrder, []byte(neverReported), 0)
	}
	if err != nil {
		return nil, fmt.Errorf("keep the machine from giving free memory back to its host (as root; or leave out --hold-memory): %w", err)
	}
	was := strings.TrimSpace(string(text))
	return func() error {
		if err := os.WriteFile(reportingOrder, []byte(was), 0); err != nil {
			return fmt.Errorf("let the machine give free memory back again: %w; write %s to %s", err, was, reportingOrder)
		}
		return nil
	}, nil
}
