package mount

import (
	"os"
	"runtime/pprof"
)

// profile writes a CPU profile of the daemon to the file that FTFUSE_TEST_PROFILE names.
func profile() (stop func()) {
	name := os.Getenv("FTFUSE_TEST_PROFILE")
	if name == "" {
		return func() {}
	}
	f, err := os.Create(name)
	if err != nil {
		return func() {}
	}
	_ = pprof.StartCPUProfile(f)
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}
}
