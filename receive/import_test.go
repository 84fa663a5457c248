package receive

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// exportOf is what the queue of a host that died still had to deliver.
func exportOf(t *testing.T, batches ...batch.Sealed) []byte {
	t.Helper()
	q, err := queue.Open(filepath.Join(t.TempDir(), "q"), queue.Options{Cursors: []string{"forward/colo"}})
	must(t, err)
	defer q.Close()
	for _, b := range batches {
		_, err := q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{{Batch: b}}})
		must(t, err)
	}
	must(t, q.Flush(t.Context()))
	var out bytes.Buffer
	_, err = q.Export(t.Context(), &out, "")
	must(t, err)
	return out.Bytes()
}

// TestAnImportedBacklogStandsOnce: also what the dead host had delivered, when it comes
// back, and when it is imported twice.
func TestAnImportedBacklogStandsOnce(t *testing.T) {
	s := newSetup(t)
	x := start(t, s)
	f := newFeeder(1)
	f.connect(t, s.Listen)
	var all []batch.Sealed
	want := ""
	for i := range 10 {
		line := fmt.Sprintf("line %d\n", i)
		want += line
		all = append(all, f.seal(rec{host: "h", path: "f", data: line}))
	}
	for _, b := range all[:4] {
		f.send(b)
	}
	f.until(t, "final acks", f.allFinal)
	export := exportOf(t, all[2:]...)
	for range 2 {
		did, err := x.r.importFrom(t.Context(), bytes.NewReader(export))
		must(t, err)
		if did.Batches != 8 || len(did.Conflicts) != 0 {
			t.Errorf("imported %+v", did)
		}
	}
	for _, b := range all[4:] { // it comes back
		f.send(b)
	}
	f.until(t, "final acks", f.allFinal)
	other := newFeeder(1)
	did, err := x.r.importFrom(t.Context(), bytes.NewReader(exportOf(t, other.seal(rec{host: "h", path: "f", data: "another content\n"}))))
	must(t, err)
	if did.Batches != 0 || len(did.Conflicts) != 1 {
		t.Errorf("a conflict: %+v", did)
	}
	if _, err := x.r.importFrom(t.Context(), bytes.NewReader(export[:len(export)-5])); err == nil {
		t.Error("an export that is cut short was imported without a word")
	}
	x.end()
	wantFile(t, s.out("h", "f"), want)
}
