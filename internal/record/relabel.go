package record

import (
	"fmt"

	"ftfuse/internal/batch"
	"ftfuse/internal/dirty"
)

// Relabel returns a copy of s under another name, for a node that was told that the old
// one names another content at the next. Records, time, compression and Via stay as they
// are; the copy was sent nowhere yet, so it has no flags. s must have the CRC that it
// says (ErrMalformed) and a version that this build knows (ErrVersion).
func Relabel(s batch.Sealed, id batch.ID) (batch.Sealed, error) {
	if sum := batch.Checksum(s.Data); sum != s.CRC {
		return batch.Sealed{}, fmt.Errorf("%w: relabel batch %v: CRC %08x, want %08x", ErrMalformed, s.ID, sum, s.CRC)
	}
	if _, err := parseHeader(s); err != nil {
		return batch.Sealed{}, err
	}
	data := dirty.Make(len(s.Data))[:len(s.Data):len(s.Data)]
	copy(data, s.Data)
	id.Append(data[8:8])
	s.ID, s.Data, s.CRC, s.Flags = id, data, batch.Checksum(data), 0
	return s, nil
}
