package mount

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"ftfuse/config"
	"ftfuse/mount/capture"
	"ftfuse/queue"
)

// prefixRoute begins the keys under which the queue keeps which groups a route has: eight
// hexadecimal digits follow, and the value is a JSON list of their names, sorted.
const prefixRoute = "route/"

// keyRoutesFrom is where the queue keeps, in decimal digits, the lowest number that a new
// set may get, once it was repaired. It has no slash, so that it is none of a route.
const keyRoutesFrom = "routes-from"

// repairGap is how many numbers are passed over after a repair of the queue, whose state
// may be older than its batches: nobody knows any more what the newest numbers meant. They
// stay passed over, since such batches may wait for longer than until the next start.
const repairGap = 1024

// ErrRoute is returned for a stored route that cannot be read.
var ErrRoute = errors.New("a stored route cannot be read")

// routes number the sets of groups that rules name. A number is stored before the first
// batch that has it, and means the same for ever. Route 0 is every group that there is.
// After begin routes do not change, and are safe for concurrent use.
type routes struct {
	all    []string            // groups that are configured
	groups map[uint32][]string // those of earlier configurations too
	byRule []uint32
	fresh  []queue.KV // not stored yet
	err    error
}

func newRoutes(m *config.Mount) *routes {
	t := &routes{groups: map[uint32][]string{}, byRule: make([]uint32, len(m.Rules))}
	for i := range m.Forwards {
		t.all = append(t.all, m.Forwards[i].Name)
	}
	return t
}

// begin reads what is stored in q and gives numbers to the sets that are new.
func (t *routes) begin(q *queue.Queue, rules []config.Rule) {
	next, err := routesFrom(q)
	if err != nil {
		t.err = err
		return
	}
	q.Range(prefixRoute, func(key string, value []byte) bool {
		n, groups, err := parseRoute(key, value)
		if err != nil {
			t.err = err
			return false
		}
		t.groups[n] = groups
		next = max(next, n+1)
		return true
	})
	if _, repaired := q.Get(queue.RepairedKey); repaired {
		next += repairGap
		t.fresh = append(t.fresh, queue.KV{Key: keyRoutesFrom, Value: strconv.AppendUint(nil, uint64(next), 10)})
	}
	for i := range rules {
		if t.err == nil && rules[i].Forward != nil && rules[i].Transfer {
			t.byRule[i] = t.number(slices.Sorted(slices.Values(rules[i].Forward)), &next)
		}
	}
}

// routesFrom returns the lowest number that a new set may get for all that is not stored.
func routesFrom(q *queue.Queue) (uint32, error) {
	v, ok := q.Get(keyRoutesFrom)
	if !ok {
		return 1, nil
	}
	n, err := strconv.ParseUint(string(v), 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%w: %s is %q; start the version that wrote it", ErrRoute, keyRoutesFrom, v)
	}
	return uint32(n), nil
}

// number returns the route of a set of groups, next if it is new.
func (t *routes) number(groups []string, next *uint32) uint32 {
	for n, have := range t.groups {
		if slices.Equal(have, groups) {
			return n
		}
	}
	n := *next
	*next++
	value, err := json.Marshal(groups)
	if err != nil {
		t.err = fmt.Errorf("store the groups %q of a rule: %w", groups, err)
		return 0
	}
	t.groups[n] = groups
	t.fresh = append(t.fresh, queue.KV{Key: fmt.Sprintf("%s%08x", prefixRoute, n), Value: value})
	return n
}

func parseRoute(key string, value []byte) (uint32, []string, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(key, prefixRoute), 16, 32)
	if err != nil || n == 0 || n == math.MaxUint32 {
		return 0, nil, fmt.Errorf("%w: key %q; restore the queue, or run `ftfuse queue repair`", ErrRoute, key)
	}
	var groups []string
	if err := json.Unmarshal(value, &groups); err != nil || len(groups) == 0 {
		return 0, nil, fmt.Errorf("%w: %s is %q: %w; start the version that wrote it", ErrRoute, key, value, errors.Join(err))
	}
	return uint32(n), groups, nil
}

// apply gives each rule its route.
func (t *routes) apply(rules []capture.Rule) []capture.Rule {
	for i := range rules {
		rules[i].Route = t.byRule[i]
	}
	return rules
}

// of returns the names of the groups that a route has, also of such as are configured no
// more. What is not known goes to every group.
func (t *routes) of(route uint32) []string {
	if groups, ok := t.groups[route]; ok {
		return groups
	}
	return t.all
}
