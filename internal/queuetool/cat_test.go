package queuetool

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"ftfuse/internal/batch"
	"ftfuse/internal/record"
	"ftfuse/queue"
)

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext\n": "plain\ttext\n", "é漢": "é漢", "\x1b[2J": `\x1b[2J`, "a\rb\x00\x7f": `a\x0db\x00\x7f`,
		"\xff\xfe": `\xff\xfe`, "\u009b2J": `\xc2\x9b2J`, "a\u202eb": `a\xe2\x80\xaeb`, "�": "�",
	} {
		if got := Escape(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{"web-01": "web-01", "": `""`, "a b": `"a b"`, "x\x1b[": `"x\x1b["`, `a"b`: `"a\"b"`, "ü/日": "ü/日"} {
		if got := Name(in); got != want {
			t.Errorf("name %q becomes %s, want %s", in, got, want)
		}
	}
}

// open returns a queue with one good batch, one that is no batch inside, and one more.
func open(t *testing.T) *queue.Queue {
	t.Helper()
	q, err := queue.Open(t.TempDir(), queue.Options{Cursors: []string{"out"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	b := record.NewBuilder(1 << 20)
	for n := uint64(1); n <= 3; n++ {
		b.Reset()
		b.Add(&record.Attr{Host: "web-01", Path: "a.log", PID: 7, Flags: record.Unterminated | record.Opener}, []byte("bell\a"))
		s := b.Seal(batch.ID{Lane: batch.Lane{Origin: batch.Origin{9}}, N: n}, 1)
		s.Data = bytes.Clone(s.Data)
		if n == 2 {
			s.Data = []byte("no batch")
			s.CRC = batch.Checksum(s.Data)
		}
		if _, err := q.Submit(t.Context(), &queue.Txn{Entries: []queue.Entry{{Batch: s}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return q
}

func TestCat(t *testing.T) {
	q := open(t)
	for escape, data := range map[bool]string{true: `bell\x07`, false: "bell\a"} {
		var export, out bytes.Buffer
		if _, err := q.Export(t.Context(), &export, ""); err != nil {
			t.Fatal(err)
		}
		if err := Cat(&export, &out, escape); !errors.Is(err, ErrUnreadable) {
			t.Errorf("a batch that is none: %v", err)
		}
		want := "== web-01 a.log pid 7 uid 0 gid 0 1970-01-01T00:00:00Z unterminated opener 5 bytes\n" + data + "\n"
		if got := out.String(); strings.Count(got, want) != 2 || strings.Count(got, "# batch ") != 3 || !strings.Contains(got, "# record: malformed") {
			t.Errorf("escape %v:\n%s", escape, got)
		}
	}
}

// TestRemoteSaysWhatTheFilesSay over HTTP.
func TestRemoteSaysWhatTheFilesSay(t *testing.T) {
	q, other := open(t), open(t)
	serve := func(q *queue.Queue, imp Importer) Remote {
		s := httptest.NewServer(Handler(q, imp))
		t.Cleanup(s.Close)
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		client := s.Client()
		client.Transport = redirect{client.Transport, u.Host}
		return Remote{client}
	}
	r := serve(q, nil)
	l, err := r.List(t.Context())
	if err != nil || l.Node != q.Node().String() || len(l.Lanes) != 1 || l.Lanes[0].Numbers != "1-3" || l.Cursors[0].Batches != 3 || l.Lanes[0].NeedBy[0] != "out" {
		t.Errorf("%+v, %v", l, err)
	}
	if v, err := r.Verify(t.Context()); err != nil || v.Damaged || len(v.Segments) != 1 || v.Segments[0].Batches != 3 {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := r.Export(t.Context(), "none"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "no such cursor") {
		t.Errorf("export for a cursor that is not there: %v", err)
	}
	if _, err := r.Import(t.Context(), strings.NewReader("")); !errors.Is(err, ErrRefused) {
		t.Errorf("import where there is none: %v", err)
	}
	export, err := r.Export(t.Context(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer export.Close()
	did, err := serve(other, other.Import).Import(t.Context(), export)
	if err != nil || did.Batches != 3 || did.Error != "" {
		t.Errorf("%+v, %v", did, err)
	}
	did, err = serve(other, other.Import).Import(t.Context(), strings.NewReader("no export"))
	if err != nil || did.Batches != 0 || did.Error == "" {
		t.Errorf("%+v, %v", did, err)
	}
}

// TestAnExportThatFailsIsNotTakenForWhole: the queue is closed under it.
func TestAnExportThatFailsIsNotTakenForWhole(t *testing.T) {
	q := open(t)
	s := httptest.NewServer(Handler(q, nil))
	t.Cleanup(s.Close)
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Get(s.URL + "/queue/export")
	if err != nil {
		return // cut off before the answer began
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil && resp.StatusCode == 200 {
		t.Errorf("%d bytes and no error", len(b))
	}
}

// redirect sends every request to one host.
type redirect struct {
	http.RoundTripper
	host string
}

func (r redirect) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Host = r.host
	return r.RoundTripper.RoundTrip(req)
}
