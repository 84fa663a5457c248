package transport

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"sync"

	"ftfuse/internal/batch"
)

// Skip says that a node dropped batches of one lane: nobody behind it will see them,
// unless another copy comes another way. It is no delivery: the numbers are entered in no
// delivered set and are below no horizon.
type Skip struct {
	Reason  string       // as the queue counts it: max_age, full, …; at most 255 bytes travel
	Ranges  batch.Ranges // the numbers
	Records uint64       // in exactly these batches
	Payload uint64       // bytes that programs wrote, in exactly these batches
}

// Batches is how many numbers s names.
func (s *Skip) Batches() uint64 { return s.Ranges.Count() }

// LaneSkips is what was dropped of one lane.
type LaneSkips struct {
	Lane  batch.Lane
	Skips []Skip
}

// maxSkipRanges is how many ranges a SkipSet keeps over all lanes, about 16 bytes each.
// Above it the oldest lane is forgotten whole.
const maxSkipRanges = 1 << 16

// maxReasons is how many reasons are counted apart; a peer may make up as many as it likes.
const maxReasons = 32

// OtherReason is what all others are counted under.
const OtherReason = "other"

// CountedAs returns the key of sums under which to count what was dropped for reason:
// reason itself, or OtherReason where there are too many or it is no plain word.
func CountedAs[T any](sums map[string]T, reason string) string {
	if _, ok := sums[reason]; ok {
		return reason
	}
	plain := strings.Trim(reason, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
	if !plain || reason == "" || len(reason) > 32 || len(sums) >= maxReasons {
		return OtherReason
	}
	return reason
}

// maxSkipFrame is how many ranges a SKIP frame has at most, 20 KiB of them.
const maxSkipFrame = 1000

// SkipSet remembers skips, so that each dropped batch is told and counted once however
// often it is heard of. The zero value is empty and ready for use. All methods are safe
// for concurrent use.
type SkipSet struct {
	mu     sync.Mutex
	lanes  map[batch.Lane]*laneSkips
	order  []batch.Lane // by first skip
	ranges int
}

type laneSkips struct {
	all   batch.Ranges // of every reason: a batch is dropped for one
	skips []Skip       // one for each reason
}

// Add takes in what was heard and returns what of it is new, with records and bytes in
// proportion where only a part of a skip is.
func (s *SkipSet) Add(lane batch.Lane, skips ...Skip) (fresh []Skip) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range skips {
		l := s.lanes[lane]
		if l == nil {
			l = &laneSkips{}
		}
		part := l.unknown(&skips[i])
		if part.Ranges.Len() == 0 {
			continue
		}
		if s.lanes == nil {
			s.lanes = make(map[batch.Lane]*laneSkips)
		}
		if s.lanes[lane] == nil {
			s.lanes[lane] = l
			s.order = append(s.order, lane)
		}
		before := l.len()
		l.add(&part)
		s.ranges += l.len() - before
		fresh = append(fresh, part)
	}
	for s.ranges > maxSkipRanges {
		s.forget(s.order[0])
	}
	return fresh
}

// Lane returns what is known of lane, a Skip for each reason.
func (s *SkipSet) Lane(lane batch.Lane) []Skip {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.lanes[lane]; l != nil {
		return l.copy()
	}
	return nil
}

// All returns what is known of every lane.
func (s *SkipSet) All() []LaneSkips {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]LaneSkips, 0, len(s.order))
	for _, lane := range s.order {
		all = append(all, LaneSkips{lane, s.lanes[lane].copy()})
	}
	return all
}

// Merge forgets what of lane is below below: nobody waits for it any more.
func (s *SkipSet) Merge(lane batch.Lane, below uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lanes[lane]
	if l == nil || below < 2 {
		return
	}
	kept := &laneSkips{}
	for _, part := range from(l.skips, below) {
		kept.add(&part)
	}
	if len(kept.skips) == 0 {
		s.forget(lane)
		return
	}
	s.ranges += kept.len() - l.len()
	s.lanes[lane] = kept
}

// take empties s and returns what it had.
func (s *SkipSet) take() []LaneSkips {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.order) == 0 {
		return nil
	}
	all := make([]LaneSkips, 0, len(s.order))
	for _, lane := range s.order {
		all = append(all, LaneSkips{lane, s.lanes[lane].skips})
	}
	s.lanes, s.order, s.ranges = nil, nil, 0
	return all
}

func (s *SkipSet) forget(lane batch.Lane) {
	s.ranges -= s.lanes[lane].len()
	delete(s.lanes, lane)
	switch i := slices.Index(s.order, lane); i {
	case 0: // where there are too many, for each one more
		s.order = s.order[1:]
	default:
		s.order = slices.Delete(s.order, i, i+1)
	}
}

func (l *laneSkips) len() int {
	n := 0
	for i := range l.skips {
		n += l.skips[i].Ranges.Len()
	}
	return n
}

// unknown returns the part of sk that l does not have.
func (l *laneSkips) unknown(sk *Skip) Skip {
	var left batch.Ranges
	known := l.all.All()
	for _, r := range sk.Ranges.All() {
		for len(known) > 0 && known[0].Last < r.First {
			known = known[1:]
		}
		for _, k := range known {
			if k.First > r.Last {
				break
			}
			if k.First > r.First {
				left.AddRange(batch.Range{First: r.First, Last: k.First - 1})
			}
			if k.Last >= r.Last {
				r.First, r.Last = 1, 0 // nothing is left of it
				break
			}
			r.First = k.Last + 1
		}
		left.AddRange(r)
	}
	return sk.portion(left)
}

// from returns what of skips is about numbers from below on.
func from(skips []Skip, below uint64) []Skip {
	var out []Skip
	for i := range skips {
		var left batch.Ranges
		for _, r := range skips[i].Ranges.All() {
			left.AddRange(batch.Range{First: max(r.First, below), Last: r.Last})
		}
		if left.Len() > 0 {
			out = append(out, skips[i].portion(left))
		}
	}
	return out
}

// portion is s for only some of its numbers.
func (s *Skip) portion(of batch.Ranges) Skip {
	whole, part := s.Ranges.Count(), of.Count()
	share := func(n uint64) uint64 {
		if part >= whole {
			return n
		}
		hi, lo := bits.Mul64(n, part)
		q, _ := bits.Div64(hi, lo, whole)
		return q
	}
	return Skip{Reason: s.Reason, Ranges: of, Records: share(s.Records), Payload: share(s.Payload)}
}

// add puts in what unknown returned.
func (l *laneSkips) add(part *Skip) {
	reason := part.Reason
	at := func(s Skip) bool { return s.Reason == reason }
	to := slices.IndexFunc(l.skips, at)
	if to < 0 && len(l.skips) >= maxReasons {
		reason = OtherReason
		to = slices.IndexFunc(l.skips, at)
	}
	if to < 0 {
		to = len(l.skips)
		l.skips = append(l.skips, Skip{Reason: reason})
	}
	for _, r := range part.Ranges.All() {
		l.all.AddRange(r)
		l.skips[to].Ranges.AddRange(r)
	}
	l.skips[to].Records += part.Records
	l.skips[to].Payload += part.Payload
}

func (l *laneSkips) copy() []Skip {
	out := make([]Skip, len(l.skips))
	for i := range l.skips {
		out[i] = l.skips[i]
		out[i].Ranges = rangesOf(l.skips[i].Ranges.All())
	}
	return out
}

func rangesOf(all []batch.Range) (set batch.Ranges) {
	for _, r := range all {
		set.AddRange(r)
	}
	return set
}

// appendSkips appends as many SKIP frames as skips of lane need.
func appendSkips(b []byte, lane batch.Lane, skips []Skip) []byte {
	for i := range skips {
		all := skips[i].Ranges.All()
		rest := skips[i]
		for len(all) > 0 {
			n := min(len(all), maxSkipFrame)
			part := rest.portion(rangesOf(all[:n])) // all of rest in the last round
			all = all[n:]
			rest = Skip{rest.Reason, rangesOf(all), rest.Records - part.Records, rest.Payload - part.Payload}
			at := len(b)
			b = lane.Append(beginFrame(b))
			b = appendText(b, part.Reason)
			b = binary.LittleEndian.AppendUint64(b, part.Records)
			b = binary.LittleEndian.AppendUint64(b, part.Payload)
			b = endFrame(part.Ranges.Append(b), at, typeSkip, 0)
		}
	}
	return b
}

func parseSkip(p []byte) (batch.Lane, Skip, error) {
	f := fields{p: p}
	lane, err := batch.ParseLane(f.bytes(batch.LaneSize))
	if err != nil {
		return lane, Skip{}, fmt.Errorf("%w: SKIP: %w", ErrFrame, err)
	}
	s := Skip{Reason: f.text(), Records: f.uint64(), Payload: f.uint64()}
	if err := f.err("SKIP"); err != nil {
		return lane, s, err
	}
	if s.Ranges, _, err = batch.ParseRanges(f.p); err != nil {
		return lane, s, fmt.Errorf("%w: SKIP: %w", ErrFrame, err)
	}
	if n := s.Ranges.Len(); n > maxSkipFrame {
		return lane, s, fmt.Errorf("%w: SKIP with %d ranges, at most %d are taken", ErrFrame, n, maxSkipFrame)
	}
	return lane, s, nil
}
