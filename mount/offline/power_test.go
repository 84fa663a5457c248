package offline

import (
	"os"
	"path/filepath"
	"testing"

	"ftfuse/internal/roletest"
)

// A file that was taken in was removed, and forgotten before its removal was on the disk: after a
// power loss it was there again, and was taken in again.
func TestARemovedFileComesBackWithAPowerLoss(t *testing.T) {
	d := roletest.NewDisk(t, 16<<20)
	r := &rig{T: t, dir: d.Dir, m: newMemory()}
	r.open(Options{})
	f := r.write("a.log", "a line\n")
	r.must(f.Sync())
	r.must(f.Close())
	root, err := os.Open(d.Dir)
	r.must(err)
	r.must(root.Sync())
	r.must(root.Close())
	r.must(r.t.TakeAll(t.Context()))
	r.must(os.Remove(filepath.Join(d.Dir, "a.log")))
	for range forgetAfter {
		r.pass()
	}
	r.must(r.t.Close())
	d.LosePower()
	d.Restore()
	r.open(Options{})
	r.must(r.t.TakeAll(t.Context()))
	r.want("a.log", "a line\n")
}
