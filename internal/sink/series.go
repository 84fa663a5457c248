package sink

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"ftfuse/internal/output"
)

// rotatePrefix + 16 hexadecimal digits, of the SHA-256 of the path: an encoded series.
const rotatePrefix = "rotate/"

// errSeries is returned for a stored series that cannot be read.
var errSeries = errors.New("sink: malformed state of a rotated file")

const seriesVersion = 1

// stage is how far a rotated file is.
type stage byte

const (
	stagePlain  stage = iota // renamed, or about to be; as it was written
	stageNoted               // compressed, perhaps named: the copy that has the identity packed is whole
	stagePacked              // the compressed copy has taken its place
)

// rotated is one file that was rotated: PATH.NUMBER, and the codec's suffix when packed.
type rotated struct {
	number uint64
	stage  stage
	codec  codec // what it is to be compressed with
	id     output.ID
	packed output.ID // of the compressed copy, with stageNoted
}

// series is an output file and those that were rotated away from it.
type series struct {
	dir, name string
	file      string // the template that named it, to find the output that it is of
	last      uint64 // highest number given
	kept      []rotated

	used time.Time // of the newest record or rotation, or the start; monotonic
	look time.Time // not to be forgotten before; dropIdle's alone
}

func (s *series) path() string { return s.dir + "/" + s.name }
func (s *series) key() string  { return seriesKey(s.path()) }

func seriesKey(path string) string {
	sum := sha256.Sum256([]byte(path))
	return fmt.Sprintf(rotatePrefix+"%016x", binary.BigEndian.Uint64(sum[:]))
}

// rotatedName is what the file called name is called when it is rotated. Numbers only grow:
// a rotated file keeps its name.
func rotatedName(name string, number uint64) string {
	return fmt.Sprintf("%s.%0*d", name, numberDigits, number)
}

const numberDigits = 6

// nameOf returns the name of a rotated file, below the series' dir.
func (s *series) nameOf(k *rotated) string {
	name := rotatedName(s.name, k.number)
	if k.stage == stagePacked {
		name += k.codec.suffix()
	}
	return name
}

// at returns the entry of a number, or nil.
func (s *series) at(number uint64) *rotated {
	for i := range s.kept {
		if s.kept[i].number == number {
			return &s.kept[i]
		}
	}
	return nil
}

// drop forgets the entry of a number.
func (s *series) drop(number uint64) {
	for i := range s.kept {
		if s.kept[i].number == number {
			s.kept = append(s.kept[:i], s.kept[i+1:]...)
			return
		}
	}
}

// remembered is how many finished files a series knows of where all are kept.
const remembered = 1000

// trim forgets the oldest finished files, which stay where they are, beyond most. It returns
// those forgotten.
func (s *series) trim(most int) (gone []rotated) {
	for i := 0; i < len(s.kept) && len(s.kept) > most; {
		if k := s.kept[i]; k.unpacked() {
			i++
		} else {
			gone = append(gone, k)
			s.drop(k.number)
		}
	}
	return gone
}

// append appends the encoded series (docs/protocol.md, "State").
func (s *series) append(b []byte) []byte {
	start := len(b)
	b = append(b, seriesVersion)
	for _, text := range []string{s.dir, s.name, s.file} {
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	b = binary.AppendUvarint(b, s.last)
	b = binary.AppendUvarint(b, uint64(len(s.kept)))
	for i := range s.kept {
		k := &s.kept[i]
		b = binary.AppendUvarint(b, k.number)
		b = append(b, byte(k.stage), byte(k.codec))
		b = appendID(b, k.id)
		if k.stage == stageNoted {
			b = appendID(b, k.packed)
		}
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseSeries reads an encoded series.
func parseSeries(b []byte) (*series, error) {
	if len(b) < 1+4 {
		return nil, fmt.Errorf("%w: %d bytes", errSeries, len(b))
	}
	body := b[:len(b)-4]
	if got, want := crc32.Checksum(body, castagnoli), binary.LittleEndian.Uint32(b[len(b)-4:]); got != want {
		return nil, fmt.Errorf("%w: CRC %08x, want %08x", errSeries, got, want)
	}
	if body[0] != seriesVersion {
		return nil, fmt.Errorf("%w: version %d, this build reads %d", errSeries, body[0], seriesVersion)
	}
	r := noteReader{b: body[1:]}
	s := &series{}
	for _, to := range []*string{&s.dir, &s.name, &s.file} {
		n := r.uvarint()
		if n > uint64(len(r.b)) {
			return nil, fmt.Errorf("%w: a name of %d bytes in %d", errSeries, n, len(r.b))
		}
		*to = string(r.take(int(n)))
	}
	s.last = r.uvarint()
	count := r.uvarint()
	if count > uint64(len(r.b)) {
		return nil, fmt.Errorf("%w: %d files in %d bytes", errSeries, count, len(r.b))
	}
	for range count {
		k := rotated{number: r.uvarint(), stage: stage(r.take(1)[0]), codec: codec(r.take(1)[0]), id: r.id()}
		if k.stage == stageNoted {
			k.packed = r.id()
		}
		if k.stage > stagePacked || k.codec > codecZstd {
			return nil, fmt.Errorf("%w: stage %d, codec %d", errSeries, k.stage, k.codec)
		}
		s.kept = append(s.kept, k)
	}
	if r.bad || len(r.b) != 0 {
		return nil, fmt.Errorf("%w: cut short or too long", errSeries)
	}
	return s, nil
}
