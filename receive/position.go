package receive

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// ErrPosition is returned for a position that is not one of this server's queue.
var ErrPosition = errors.New("receive: position")

// Position is how far a Handler got in the queue of a Server. The zero Position is the
// beginning. It is comparable.
type Position struct {
	Queue [16]byte // names the server's queue for ever
	Seq   uint64   // the newest batch that was handled
}

const (
	positionVersion = 1
	positionSize    = 1 + 16 + 8
)

// MarshalBinary returns the 25 bytes of p: a version, Queue, and Seq in little endian.
func (p Position) MarshalBinary() ([]byte, error) {
	b := append([]byte{positionVersion}, p.Queue[:]...)
	return binary.LittleEndian.AppendUint64(b, p.Seq), nil
}

// UnmarshalBinary reads what MarshalBinary wrote. No bytes at all are the zero Position.
func (p *Position) UnmarshalBinary(b []byte) error {
	switch {
	case len(b) == 0:
		*p = Position{}
		return nil
	case b[0] != positionVersion || len(b) != positionSize:
		return fmt.Errorf("%w: %d bytes of version %d, want %d of version %d", ErrPosition, len(b), b[0], positionSize, positionVersion)
	}
	copy(p.Queue[:], b[1:])
	p.Seq = binary.LittleEndian.Uint64(b[17:])
	return nil
}

// String is the name of the queue, a slash and the number.
func (p Position) String() string { return fmt.Sprintf("%s/%d", hex.EncodeToString(p.Queue[:]), p.Seq) }
