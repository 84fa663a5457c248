package holder

import (
	"os"
	"path/filepath"
)

// setName gives this process the name of its command. The kernel named it after the file
// it was started from, which may be /proc/self/exe.
func setName() {
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0) // for ps(1) only
}
