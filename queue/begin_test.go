package queue

import (
	"slices"
	"testing"

	"ftfuse/internal/batch"
)

// What a cursor wants can follow from what is stored, and for whom from the node's id: both
// are known before Wants is asked, also about what was stored before.
func TestBeginComesBeforeWants(t *testing.T) {
	dir := t.TempDir()
	var q *Queue
	node, routes, asked := batch.Node{}, "", 0
	o := Options{
		Cursors: []string{"a"},
		Begin: func(q *Queue) {
			v, _ := q.Get("route")
			node, routes = q.Node(), string(v)
			q.Range("ro", func(key string, v []byte) bool {
				if string(v) != routes {
					t.Errorf("%s is %q", key, v)
				}
				return true
			})
		},
		Wants: func(cursor string, lane batch.Lane) bool {
			if node == (batch.Node{}) {
				t.Error("Wants was asked before Begin")
			}
			asked++
			return cursor == "a" || routes == cursor
		},
	}
	q = mustOpen(t, dir, o)
	if node != q.Node() {
		t.Errorf("Begin saw node %v, want %v", node, q.Node())
	}
	mustSubmit(t, q, &Txn{Entries: []Entry{testEntry(1, 1, 100)}, Set: []KV{{Key: "route", Value: []byte("b")}}})
	mustFlush(t, q)
	mustClose(t, q)
	o.Cursors, asked = []string{"b", "c"}, 0
	q = mustOpen(t, dir, o)
	if asked == 0 || routes != "b" {
		t.Errorf("Wants was asked %d times, route %q", asked, routes)
	}
	if got := left(t, q, "b"); !slices.Equal(got, []uint64{1}) {
		t.Errorf("b needs %v", got)
	}
	if got := left(t, q, "c"); len(got) != 0 {
		t.Errorf("c needs %v", got)
	}
	mustClose(t, q)
}
