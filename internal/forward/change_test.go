package forward

import (
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/queue"
	"ftfuse/transport"
)

// keys lists what is stored with a prefix.
func (r *rig) keys(prefix string) (keys []string) {
	for k := range r.disk.kv {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	return keys
}

func group(name, host string) GroupConfig {
	return GroupConfig{Name: name, Mode: Any, Primary: []string{host + simPort}}
}

// foreignLane is a lane of a source that sends to this node.
func foreignLane() batch.Lane {
	return batch.Lane{Origin: batch.Origin{8}, Epoch: batch.Epoch{Counter: 1}}
}

// finalIs compares what is final at every line.
func (r *rig) finalIs(what string, lane batch.Lane, want string) {
	r.t.Helper()
	finals := r.f.Finals(lane)
	r.want("final "+what, finals.String(), want)
}

// TestANewGroupKeepsNothingFromBeingFinal that had passed before it was there, and of what
// had not, each batch until it is final at the new group, too.
func TestANewGroupKeepsNothingFromBeingFinal(t *testing.T) {
	inBubble(t, func(r *rig) {
		lane := foreignLane()
		stuck := true
		a := r.up("a", 2, func(b batch.Sealed) (transport.Verdict, bool) {
			return transport.Verdict{}, b.ID.N != 4 || !stuck
		})
		r.start()
		r.submit(lane, 1, 4)
		r.pass(3 * time.Second)
		a.server.Final(batch.ID{Lane: lane, N: 2})
		r.pass(3 * time.Second)
		r.crash()
		stuck = false
		b := r.up("b", 3, nil)
		r.o.Groups = append(r.o.Groups, group("new", "b"))
		r.start()
		r.finalIs("at the start", lane, "2")
		r.crash() // before any of it is stored
		r.start()
		r.submit(lane, 5, 5)
		r.pass(3 * time.Second)
		r.want("the new group", b.numbers(), "4 5")
		r.finalIs("when nothing new is", lane, "2")
		for range 2 {
			a.server.FinalRanges(lane, batch.Range{First: 1, Last: 5})
			r.pass(3 * time.Second)
			r.finalIs("when all is at the old group", lane, "1-3")
			r.crash()
			r.start()
			r.pass(3 * time.Second)
		}
		b.server.FinalRanges(lane, batch.Range{First: 4, Last: 5})
		r.pass(3 * time.Second)
		r.finalIs("when all is", lane, "1-5")
	}, group("g", "a"))
}

// TestASourceAnnouncesToANewGroupWhatIsFinal: what passed before is below the horizon.
func TestASourceAnnouncesToANewGroupWhatIsFinal(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.up("a", 2, nil)
		r.start()
		r.submit(rigLane(1), 1, 5)
		r.pass(3 * time.Second)
		a.server.FinalRanges(rigLane(1), batch.Range{First: 1, Last: 3})
		r.pass(3 * time.Second)
		r.crash()
		b := r.up("b", 3, nil)
		r.o.Groups = append(r.o.Groups, group("new", "b"))
		r.start()
		r.pass(3 * time.Second)
		if x, y := a.horizon(rigLane(1)), b.horizon(rigLane(1)); x != 4 || y != 4 {
			t.Errorf("the horizon is %d and %d, want 4", x, y)
		}
	}, group("g", "a"))
}

// TestWhatAGoneGroupPassedIsFinalWhenItIs: a group that was renamed has the same next node,
// which says so. Where it has another one, what it is asked for again is taken again, and
// sent there.
func TestWhatAGoneGroupPassedIsFinalWhenItIs(t *testing.T) {
	lane, m := foreignLane(), batch.Node{10}
	begin := func(r *rig, name, host string) *peerServer {
		a := r.up("a", 2, nil)
		r.start()
		r.submit(lane, 1, 3)
		for n := range uint64(3) {
			r.f.Took(batch.ID{Lane: lane, N: n + 1}, []batch.Node{m})
		}
		r.pass(3 * time.Second)
		a.server.Final(batch.ID{Lane: lane, N: 2})
		r.pass(3 * time.Second)
		r.crash()
		r.o.Groups = []GroupConfig{group(name, host)}
		r.start()
		r.pass(3 * time.Second)
		r.finalIs("at the start", lane, "2")
		return a
	}
	t.Run("renamed", func(t *testing.T) {
		inBubble(t, func(r *rig) {
			a := begin(r, "h", "a")
			a.server.FinalRanges(lane, batch.Range{First: 1, Last: 3})
			r.pass(3 * time.Second)
			r.finalIs("when it was said", lane, "1-3")
			r.crash()
			r.start()
			r.finalIs("after a restart", lane, "1-3")
			if keys := r.keys(prefixFinal + "g/"); len(keys) > 0 {
				t.Errorf("left behind: %q", keys)
			}
		}, group("g", "a"))
	})
	t.Run("to another node", func(t *testing.T) {
		inBubble(t, func(r *rig) {
			begin(r, "h", "b")
			for n, want := range []bool{false, true, false} {
				if got := r.f.Covers(batch.ID{Lane: lane, N: uint64(n + 1)}, []batch.Node{m}); got != want {
					t.Errorf("batch %d is a duplicate: %v", n+1, got)
				}
			}
		}, group("g", "a"))
	})
}

// TestAReplacedBroadcastDestinationHoldsTheHorizon below what may still be on the way behind
// the one that is gone: whoever gets that last would call it a duplicate.
func TestAReplacedBroadcastDestinationHoldsTheHorizon(t *testing.T) {
	g := func(second string) GroupConfig {
		return GroupConfig{Name: "g", Mode: Broadcast, Primary: []string{"a" + simPort, second + simPort}}
	}
	inBubble(t, func(r *rig) {
		a, b := r.up("a", 2, nil), r.up("b", 3, nil)
		r.start()
		r.submit(rigLane(1), 1, 5)
		r.pass(3 * time.Second)
		a.server.FinalRanges(rigLane(1), batch.Range{First: 1, Last: 5})
		b.server.FinalRanges(rigLane(1), batch.Range{First: 1, Last: 2})
		r.pass(3 * time.Second)
		r.crash()
		c := r.up("c", 4, nil)
		r.o.Groups = []GroupConfig{g("c")}
		r.start()
		r.pass(3 * time.Second)
		if x := c.horizon(rigLane(1)); x != 3 {
			t.Errorf("the horizon is %d, want 3", x)
		}
		c.server.FinalRanges(rigLane(1), batch.Range{First: 1, Last: 5})
		r.pass(3 * time.Second)
		if x := c.horizon(rigLane(1)); x != 6 {
			t.Errorf("the horizon is %d, want 6", x)
		}
	}, g("b"))
}

// TestARenamedGroupFlagsWhatMayHaveBeenSent under its old name, and nothing else.
func TestARenamedGroupFlagsWhatMayHaveBeenSent(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.up("a", 2, never)
		r.start()
		r.submit(rigLane(1), 1, 3)
		r.pass(time.Second)
		r.want("sent", a.numbers(), "1 2 3")
		r.crash()
		b := r.up("b", 3, never)
		r.o.Groups = []GroupConfig{group("h", "b")}
		r.start()
		r.submit(rigLane(1), 4, 4)
		r.pass(time.Second)
		r.want("sent by the renamed group", b.numbers(), "1! 2! 3! 4")
		r.crash()
		b.got = nil
		r.o.Groups = []GroupConfig{group("i", "b")}
		r.start()
		r.crash() // before anything is stored
		r.start()
		r.pass(time.Second)
		r.want("after one more name", b.numbers(), "1! 2! 3! 4!")
		if keys := r.keys(prefixSent); len(keys) != 2 {
			t.Errorf("stored: %q, want that of the group and that of those that are gone", keys)
		}
	}, group("g", "a"))
}

// TestARelabelledBatchBecomesFinalAtARenamedGroup under its old id, too.
func TestARelabelledBatchBecomesFinalAtARenamedGroup(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.o.Relabel = relabelAll
		lane := foreignLane()
		a := r.up("a", 2, conflictsOn(lane))
		r.start()
		r.submit(lane, 1, 1)
		r.f.Took(batch.ID{Lane: lane, N: 1}, []batch.Node{{10}})
		r.pass(5 * time.Second)
		r.want("a", a.numbers(), "1 1")
		for _, name := range []string{"h", "i"} {
			r.crash()
			r.o.Groups = []GroupConfig{group(name, "a")}
			r.start()
			r.pass(3 * time.Second)
			a.server.FinalRanges(lane, batch.Range{First: 1, Last: 1}) // the other content
			r.pass(3 * time.Second)
			r.finalIs("before the new one is", lane, "")
			if !r.f.Covers(batch.ID{Lane: lane, N: 1}, []batch.Node{{10}}) {
				t.Error("taken again, it would stand twice")
			}
		}
		a.server.Final(a.got[1].ID)
		r.pass(3 * time.Second)
		r.finalIs("when the new one is", lane, "1")
	}, group("g", "a"))
}

// TestANewGroupBringsNoForgottenLaneBack in the place of one that is known.
func TestANewGroupBringsNoForgottenLaneBack(t *testing.T) {
	const epochs = keptEpochs + 4
	lane := func(epoch int) batch.Lane {
		return batch.Lane{Origin: batch.Origin{8}, Epoch: batch.Epoch{Counter: uint64(epoch)}}
	}
	inBubble(t, func(r *rig) {
		var a *peerServer
		a = r.up("a", 2, func(b batch.Sealed) (transport.Verdict, bool) {
			time.AfterFunc(time.Second, func() { a.server.Final(b.ID) })
			return transport.Verdict{}, true
		})
		r.start()
		for e := 1; e <= epochs; e++ {
			r.submit(lane(e), 1, 1)
			r.pass(3 * time.Second)
		}
		for range 2 {
			for e := 1; e <= epochs; e++ {
				want := "1"
				if e <= epochs-keptEpochs {
					want = ""
				}
				r.finalIs(lane(e).String(), lane(e), want)
			}
			r.crash()
			r.o.Groups = []GroupConfig{group("g", "a"), group("new", "b")}
			r.start()
			r.pass(3 * time.Second)
		}
	}, group("g", "a"))
}

// TestANewCursorOfARealQueue owes what is in the queue, and nothing else.
func TestANewCursorOfARealQueue(t *testing.T) {
	dir, lane := t.TempDir(), foreignLane()
	open := func(groups ...GroupConfig) *queue.Queue {
		q, err := queue.Open(dir, queue.Options{Dedupe: true, Cursors: Cursors(groups)})
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	q := open(group("g", "a"))
	var entries []queue.Entry
	for n := range uint64(3) {
		data := []byte{byte(n)}
		entries = append(entries, queue.Entry{Batch: batch.Sealed{ID: batch.ID{Lane: lane, N: n + 1}, CRC: batch.Checksum(data), Data: data, Host: "there"}})
	}
	sent := []queue.KV{sentKV("forward/g", 3)} // the group ran
	if _, err := q.Submit(t.Context(), &queue.Txn{Entries: entries, Set: sent}); err != nil {
		t.Fatal(err)
	}
	if err := q.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := q.Cursor("forward/g")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		it, err := c.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.Ack(it.Seq)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	groups := []GroupConfig{group("g", "a"), group("new", "b")}
	q = open(groups...)
	defer q.Close()
	f, err := New(Options{Queue: q, Groups: groups, Identity: transport.Identity{Node: q.Node()}})
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range []bool{true, true, false} {
		id := batch.ID{Lane: lane, N: uint64(n + 1)}
		if got := f.finals.at(1, id); got != want || f.finals.at(0, id) {
			t.Errorf("batch %d is final at the new group: %v, at the old one: %v", id.N, got, f.finals.at(0, id))
		}
	}
}
