package sink

import (
	"errors"
	"path/filepath"
	"testing"

	"ftfuse/internal/record"
	"ftfuse/queue"
)

// rig is a sink over a queue, in directories of its own, without the goroutines.
type rig struct {
	*Sink
	q     *queue.Queue
	queue queue.Options
	dir   string
}

func newRig(t *testing.T, outputs ...Output) *rig {
	t.Helper()
	r := &rig{dir: t.TempDir()}
	if len(outputs) == 0 {
		outputs = []Output{output1(r.out(), nil)}
	}
	r.reopen(t, outputs...)
	t.Cleanup(func() {
		must(t, r.q.Close())
		must(t, r.Close())
	})
	return r
}

// reopen opens the queue and the sink, which the test closed before.
func (r *rig) reopen(t *testing.T, outputs ...Output) {
	t.Helper()
	r.queue.Dedupe, r.queue.Cursors = true, []string{"apply"}
	var err error
	r.q, err = queue.Open(filepath.Join(r.dir, "queue"), r.queue)
	must(t, err)
	r.Sink, err = Open(t.Context(), Options{Queue: r.q, Cursor: "apply", Outputs: outputs, DeadDir: filepath.Join(r.dir, "dead")})
	must(t, err)
}

func (r *rig) out(elem ...string) string {
	return filepath.Join(append([]string{r.dir, "out"}, elem...)...)
}

// TestABatchSpeaksForItsHostOnly: the envelope is what every hop checks; what is inside
// must not say something else.
func TestABatchSpeaksForItsHostOnly(t *testing.T) {
	r := newRig(t)
	from := newSealer(1)
	for name, change := range map[string]func(hosts []string) (envelope string){
		"no host":          func([]string) string { return "" },
		"another host":     func([]string) string { return "web-2" },
		"another case":     func([]string) string { return "Web-1" },
		"the last of many": func(h []string) string { h[2] = "web-2"; return "web-1" },
		"the first":        func(h []string) string { h[0] = "web-2"; return "web-1" },
	} {
		hosts := []string{"web-1", "web-1", "web-1"}
		envelope := change(hosts)
		var recs []rec
		for _, h := range hosts {
			recs = append(recs, rec{host: h, path: "f", data: "line\n"})
		}
		b := from.seal(recs...)
		b.Host = envelope
		if txn, err := r.Take(b, "a test"); !errors.Is(err, ErrHost) || txn != nil {
			t.Errorf("%s: %v, want ErrHost", name, err)
		}
	}
	if _, err := r.Take(from.seal(rec{host: "web-1", path: "f", data: "line\n"}), "a test"); err != nil {
		t.Errorf("its own host: %v", err)
	}
}

// TestACompressedBatchIsWrittenAsItWas: also where parts of it are joined.
func TestACompressedBatchIsWrittenAsItWas(t *testing.T) {
	for _, codec := range []record.Codec{record.CodecNone, record.CodecS2, record.CodecZstd} {
		s, err := newSet([]Output{output1("/d", nil)})
		must(t, err)
		from := newSealer(1)
		from.b.Compress(codec)
		var recs []rec
		want := map[string]string{}
		for i := range 200 {
			r := rec{host: "h", path: string(rune('a' + i/3%2)), data: "a line that is much like the others\n"}
			recs = append(recs, r)
			want["h/"+r.path] += r.data
		}
		b := from.seal(recs...)
		if c := record.Codec(b.Data[6]); c != codec {
			t.Fatalf("the batch has codec %v, want %v", c, codec)
		}
		p, err := newPlanner(s).build(b)
		must(t, err)
		for i := range p.files {
			var got string
			for _, seg := range p.files[i].segs {
				got += string(seg)
			}
			if name := p.files[i].name; got != want[name] {
				t.Errorf("%v: %s has %d bytes, want %d", codec, name, len(got), len(want[name]))
			}
		}
	}
}

// TestABatchWithoutPlacesIsPassed: a relay's queue had it before there was an output.
func TestABatchWithoutPlacesIsPassed(t *testing.T) {
	r := newRig(t)
	from := newSealer(1)
	_, err := r.q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{{Batch: from.seal(rec{host: "h", path: "f", data: "old\n"})}}, Sync: true})
	must(t, err)
	txn, err := r.Take(from.seal(rec{host: "h", path: "f", data: "new\n"}), "a test")
	must(t, err)
	_, err = r.q.Submit(t.Context(), txn)
	must(t, err)
	for range 2 {
		item, err := r.applier.nextDue(t.Context())
		must(t, err)
		must(t, r.applier.apply(t.Context(), item))
	}
	if n := r.Stats().PassedBatches; n != 1 || !r.applier.settled() {
		t.Errorf("%d batches were passed, want 1; settled %v", n, r.applier.settled())
	}
	if st := r.Stats(); st.WrittenBytes != 4 {
		t.Errorf("%d bytes were written, want 4", st.WrittenBytes)
	}
}
