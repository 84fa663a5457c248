package e2e

import (
	"os"
	"syscall"
	"testing"
)

// A reload has rules transfer what lies below the mount point: it was taken only at the next
// write to one of these files, or the next start.
func TestFilesThatAReloadHasTransferredAreTakenAtOnce(t *testing.T) {
	p := newPair(t)
	see := under(t, p)
	p.Rules = "[[mount.rule]]\npath = \"private/**\"\ntransfer = false\n"
	private, app := offLines("private", 0, 100), offLines("app", 0, 100)
	leave(t, p, "private/x", private)
	leave(t, p, "app.log", app)
	start(t, p)
	arrives(t, p.Out("app.log"), app)
	gone(t, see("app.log")) // everything was looked at
	if _, err := os.Lstat(see("private/x")); err != nil {
		t.Fatal(err)
	}
	p.Rules = ""
	must(t, p.WriteConfigs())
	must(t, p.MountRole.Signal(syscall.SIGHUP))
	arrives(t, p.Out("private/x"), private)
	gone(t, see("private/x"))
	stop(t, p)
	same(t, p.Out("private/x"), private)
}
