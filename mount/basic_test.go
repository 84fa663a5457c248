package mount

import (
	"os"
	"testing"
)

func TestWhatIsWrittenIsCapturedAndCanBeReadBack(t *testing.T) {
	r := newRig(t, "")
	want := "one\ntwo\nthree\n"
	if err := os.WriteFile(r.path("a.log"), []byte("one\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(r.path("a.log"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"two\n", "three\n"} {
		if _, err := f.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(r.path("a.log"))
	if err != nil || string(got) != want {
		t.Fatalf("%q, %v", got, err)
	}
	r.stop()
	r.wantDelivered("a.log", want)
}
