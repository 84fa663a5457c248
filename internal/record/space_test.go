package record

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestSpaceIsAdd: records made in place are those that Add would have made, mixed with
// Add, whatever is left unused, and a refused one changes nothing.
func TestSpaceIsAdd(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	a, b := NewBuilder(20_000), NewBuilder(20_000)
	for n := uint64(1); n <= 200; n++ {
		for {
			attr := Attr{Host: "h", Path: fmt.Sprint("p", rnd.IntN(5)), PID: uint32(rnd.IntN(3)), Time: rnd.Int64N(1000)}
			data := bytes.Repeat([]byte{byte(rnd.Uint32())}, rnd.IntN(1500))
			spare := rnd.IntN(300)
			space := b.Space(len(data) + spare)
			if space == nil || rnd.IntN(3) == 0 {
				if a.Add(&attr, data) != b.Add(&attr, data) {
					t.Fatal("Add differs")
				}
				if rnd.IntN(30) == 0 || space == nil {
					break
				}
				continue
			}
			copy(space, data)
			if !b.AddSpace(&attr, len(data)) {
				break
			}
			if !a.Add(&attr, data) {
				t.Fatal("AddSpace took what Add does not")
			}
		}
		x, y := a.Seal(testID(n), 1), b.Seal(testID(n), 1)
		if !bytes.Equal(x.Data, y.Data) || x.CRC != y.CRC || x.Records != y.Records || x.Payload != y.Payload {
			t.Fatalf("batch %d differs", n)
		}
		if err := Check(y); err != nil {
			t.Fatal(err)
		}
	}
	if b.Space(MaxBatch) != nil {
		t.Error("space above MaxBatch")
	}
	big := b.Space(2 << 20)
	if len(big) != 2<<20 || !b.AddSpace(&Attr{Path: "long"}, len(big)) {
		t.Error("an empty batch has no space for 2 MiB")
	}
	if err := Check(b.Seal(testID(999), 1)); err != nil {
		t.Error(err)
	}
}
