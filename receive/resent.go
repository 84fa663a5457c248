package receive

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
)

// The account of batches that came flagged: whoever sent them, or a node before, had
// them in flight to another destination, so that another receiver may have written them
// too. It is a fact about the output files and is kept for ever, but for the ids of the
// lanes that were longest without one.
const (
	resentPrefix  = "resent/" // + lane in hexadecimal
	resentVersion = 1
	resentLanes   = 256  // lanes whose ids are kept
	resentRanges  = 1024 // ranges of a lane that are kept, the newest
	sayEvery      = time.Second
)

var errResent = errors.New("receive: malformed account of resent batches")

// Resent is the account of one lane.
type Resent struct {
	Lane             batch.Lane
	IDs              batch.Ranges
	Batches          uint64 // may be more than the ids that are kept
	Records, Payload uint64
}

// resentLane is Resent as it is stored, with its place in the order of the newest batch.
type resentLane struct {
	Resent
	order uint64
}

func resentKey(lane batch.Lane) string { return resentPrefix + hex.EncodeToString(lane.Append(nil)) }

func (r *resentLane) encode() []byte {
	b := []byte{resentVersion}
	for _, v := range []uint64{r.order, r.Batches, r.Records, r.Payload} {
		b = binary.AppendUvarint(b, v)
	}
	return r.IDs.Append(b)
}

func parseResent(key string, value []byte) (r resentLane, err error) {
	bad := func(err error) (resentLane, error) { return r, fmt.Errorf("%w: %s: %w", errResent, key, err) }
	name, err := hex.DecodeString(key[len(resentPrefix):])
	if err != nil {
		return bad(err)
	}
	if r.Lane, err = batch.ParseLane(name); err != nil {
		return bad(err)
	}
	if len(value) == 0 || value[0] != resentVersion {
		return bad(fmt.Errorf("version %v, this build reads %d", value[:min(1, len(value))], resentVersion))
	}
	in := bytes.NewReader(value[1:])
	for _, v := range []*uint64{&r.order, &r.Batches, &r.Records, &r.Payload} {
		if *v, err = binary.ReadUvarint(in); err != nil {
			return bad(err)
		}
	}
	if r.IDs, _, err = batch.ParseRanges(value[len(value)-in.Len():]); err != nil {
		return bad(err)
	}
	return r, nil
}

// resentAccount is the account in memory, as of the newest submitted transaction.
type resentAccount struct {
	mu     sync.Mutex
	lanes  map[batch.Lane]*resentLane
	order  uint64
	news   map[batch.Lane]*batch.Ranges // not logged yet
	wakeup chan struct{}
}

// openResent reads the account.
func openResent(q *queue.Queue) (*resentAccount, error) {
	a := &resentAccount{lanes: map[batch.Lane]*resentLane{}, news: map[batch.Lane]*batch.Ranges{}, wakeup: make(chan struct{}, 1)}
	var bad error
	q.Range(resentPrefix, func(key string, value []byte) bool {
		r, err := parseResent(key, value)
		if err != nil {
			bad = err
			return false
		}
		a.lanes[r.Lane], a.order = &r, max(a.order, r.order)
		return true
	})
	return a, bad
}

// add notes a flagged batch that is being committed, and returns what to store with it.
func (a *resentAccount) add(b *batch.Sealed) []queue.KV {
	a.mu.Lock()
	defer a.mu.Unlock()
	lane := b.ID.Lane
	r := a.lanes[lane]
	if r == nil {
		r = &resentLane{Resent: Resent{Lane: lane}}
		a.lanes[lane] = r
	}
	a.order++
	r.order = a.order
	r.IDs.Add(b.ID.N)
	r.Batches++
	r.Records += uint64(b.Records)
	r.Payload += b.Payload
	if all := r.IDs.All(); len(all) > resentRanges {
		r.IDs = batch.Ranges{}
		for _, x := range all[1:] {
			r.IDs.AddRange(x)
		}
	}
	if a.news[lane] == nil {
		a.news[lane] = &batch.Ranges{}
	}
	a.news[lane].Add(b.ID.N)
	select {
	case a.wakeup <- struct{}{}:
	default:
	}
	set := []queue.KV{{Key: resentKey(lane), Value: r.encode()}}
	if len(a.lanes) > resentLanes {
		oldest := a.oldest()
		delete(a.lanes, oldest)
		set = append(set, queue.KV{Key: resentKey(oldest)})
	}
	return set
}

func (a *resentAccount) oldest() (oldest batch.Lane) {
	least := ^uint64(0)
	for lane, r := range a.lanes {
		if r.order < least {
			oldest, least = lane, r.order
		}
	}
	return oldest
}

// all returns the account of every lane that is kept, in no order.
func (a *resentAccount) all() []Resent {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]Resent, 0, len(a.lanes))
	for _, r := range a.lanes {
		c := r.Resent
		c.IDs = batch.Ranges{}
		for _, x := range r.IDs.All() {
			c.IDs.AddRange(x)
		}
		all = append(all, c)
	}
	return all
}

// run logs what comes, a line for each lane at most every sayEvery, until ctx ends.
func (a *resentAccount) run(ctx context.Context, log *slog.Logger) error {
	for {
		select {
		case <-a.wakeup:
		case <-ctx.Done():
			a.say(log)
			return nil
		}
		a.say(log)
		select {
		case <-time.After(sayEvery):
		case <-ctx.Done():
		}
	}
}

// say logs what came since the last call.
func (a *resentAccount) say(log *slog.Logger) {
	a.mu.Lock()
	news := a.news
	a.news = map[batch.Lane]*batch.Ranges{}
	a.mu.Unlock()
	for lane, ids := range news {
		log.Info("took batches that may stand at another receiver too: they had been sent elsewhere before",
			"lane", lane.String(), "ranges", ids.String(), "batches", ids.Count())
	}
}
