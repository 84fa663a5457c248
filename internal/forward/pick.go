package forward

import (
	"encoding/binary"
	"hash/fnv"
	"time"

	"ftfuse/internal/batch"
)

// flowKey names what keeps together on its way: a lane without its epoch, so that a
// restart changes nothing; with the mode hash without its route too.
type flowKey struct {
	origin batch.Origin
	route  uint32
	bucket uint8
}

func keyOf(m Mode, l batch.Lane) flowKey {
	k := flowKey{origin: l.Origin, bucket: l.Bucket}
	if m != Hash {
		k.route = l.Route
	}
	return k
}

// weight is the rendezvous value of a flow at an address: the same on every host and in
// every version (docs/protocol.md, "Destinations"). FNV-1a of the key and the address,
// and the finalizer of MurmurHash3, since FNV alone leaves the upper bits alike.
func (k flowKey) weight(address string) uint64 {
	h := fnv.New64a()
	var b [21]byte
	copy(b[:], k.origin[:])
	binary.LittleEndian.PutUint32(b[16:], k.route)
	b[20] = k.bucket
	h.Write(b[:])
	h.Write([]byte(address))
	v := h.Sum64()
	v ^= v >> 33
	v *= 0xff51afd7ed558ccd
	v ^= v >> 33
	v *= 0xc4ceb9fe1a85ec53
	return v ^ v>>33
}

// nowhere is the home of a flow that has none.
const nowhere = -1

// peers are the destinations of a line, as far as decisions go. Pure, as health.
type peers struct {
	health  []health
	address []string
	removed []bool // not configured any more: no new flow
}

// add appends a destination.
func (p *peers) add(now time.Duration, address string, secondary bool, failback time.Duration) int {
	p.health = append(p.health, health{})
	p.address = append(p.address, "")
	p.removed = append(p.removed, false)
	i := len(p.health) - 1
	p.set(i, now, address, secondary, failback)
	return i
}

// set puts a destination in the place of one that is not configured any more.
func (p *peers) set(i int, now time.Duration, address string, secondary bool, failback time.Duration) {
	p.health[i], p.address[i], p.removed[i] = newHealth(now, secondary, failback), address, false
}

func (p *peers) rank(i int) rank {
	if p.removed[i] {
		return rankNone
	}
	return p.health[i].rank()
}

// tick does what the time brings. What is on hold is used where nothing better is there.
func (p *peers) tick(now time.Duration) {
	best := rankNone
	for i := range p.health {
		p.health[i].tick(now)
		best = min(best, p.rank(i))
	}
	if best&^1 != rankHold {
		return
	}
	for i := range p.health {
		if p.rank(i) == best {
			p.health[i].trust(now)
		}
	}
}

// deadline is when tick has something to do; false: never.
func (p *peers) deadline() (at time.Duration, ok bool) {
	for i := range p.health {
		if t, some := p.health[i].deadline(); some && (!ok || t < at) {
			at, ok = t, true
		}
	}
	return at, ok
}

// pick returns the destination for a flow that is at home now, or nowhere. not, if set,
// excludes destinations.
func (p *peers) pick(k flowKey, home int, not func(int) bool) int {
	best, at, weight := rankNone, nowhere, uint64(0)
	for i := range p.health {
		r := p.rank(i)
		if r == rankNone || r > best || not != nil && not(i) {
			continue
		}
		w := k.weight(p.address[i])
		if r < best || w > weight {
			best, at, weight = r, i, w
		}
	}
	if home != nowhere && best >= rankStalled && (at == nowhere || p.rank(home) != rankNone) {
		return home // no better off elsewhere
	}
	return at
}

// move is how a flow gets from its home to another destination.
type move uint8

const (
	moveNone     move = iota
	moveOrderly       // nothing new to the old one; over when it has answered
	moveFailover      // at once; what the old one has not answered goes too
)

// moveFrom says how a flow leaves home.
func (p *peers) moveFrom(home, to int) move {
	switch {
	case home == to:
		return moveNone
	case home == nowhere:
		return moveOrderly // it has nothing there
	}
	switch p.health[home].state {
	case stateDown, stateStalled, stateNew:
		return moveFailover
	}
	return moveOrderly
}
