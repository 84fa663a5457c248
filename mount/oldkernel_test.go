package mount

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

// notOnAnOldKernel are tests that have a part with attribution "write", which is the same, and
// long ones.
const notOnAnOldKernel = "TenThousand|Thousands|UnderWriters|SpoolDiskFull|Blocked|Full|Poll|Megabyte|KillAt|KilledDaemon|KillIn|Leaving|Source|Session|Signal|DropPolicies|Throttle|CaptureInForce|EveryWay|Resent|StaysOpen|Handover|KilledWorker|HoldsNobody|ADaemonServed|FsyncAt"

// briefOnAnOldKernel are tests of what the daemon does where the kernel would write by itself:
// what opens of each kind get, and what moves a file's end.
const briefOnAnOldKernel = "OpensOfEveryKind|Truncat|Overwr|Sendfile|Mapping|Rotation|Unlinked|Fsync|SizeAndPosition|WhatIsWritten|Redirection|Locks|Stale|Attributes"

// TestAllOfItOnAnOldKernel runs this package's tests once more with a kernel that refuses
// passthrough: the daemon then serves every file. With -short it is a part of them.
func TestAllOfItOnAnOldKernel(t *testing.T) {
	if os.Getenv(envCapture) != "" {
		t.Skip("these are they")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel() // two processes at a time: most of it is waiting
	run := "."
	if testing.Short() {
		run = briefOnAnOldKernel
	}
	var limit time.Duration // none
	if until, ok := t.Deadline(); ok {
		limit = time.Until(until) - 10*time.Second
	}
	cmd := exec.Command(os.Args[0], "-test.run="+run, "-test.timeout="+limit.String())
	if os.Getenv("FTFUSE_SOAK") == "" {
		cmd.Args = append(cmd.Args, "-test.skip="+notOnAnOldKernel)
	}
	cmd.Env = append(os.Environ(), envCapture+"=daemon")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
