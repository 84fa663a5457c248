package mount

import (
	"bytes"
	"fmt"
	"os/exec"
	"time"
)

// probeLimit is how long a mount may take to answer statfs before it counts as live.
const probeLimit = 2 * time.Second

func afterProbe() <-chan time.Time { return time.After(probeLimit) }

// runFusermount runs the system's fusermount3 for a user who is not root.
func runFusermount(args ...string) error {
	out, err := exec.Command(helperName, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %v: %w: %s", helperName, args, err, bytes.TrimSpace(out))
	}
	return nil
}
