package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"

	"ftfuse/config"
	"ftfuse/mount/capture"
	"ftfuse/queue"
)

// prefixRoute begins the keys under which the queue keeps which members a route has: eight
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

// allGroups is the member of a route that stands for every group that there is, where a
// route has other members beside them. config refuses groups of that name, and of names
// that begin like those of a local consumer.
const allGroups = "*"

// routes number the sets of members that rules name: groups of destinations by name, and
// local consumers (see consumers). A number is stored before the first batch that has it,
// and means the same for ever. Route 0 is every group that there is and nobody else. It is
// safe for concurrent use.
type routes struct {
	mu      sync.RWMutex
	all     []string            // groups that are configured
	members map[uint32][]string // of earlier configurations too
	next    uint32              // the lowest number that a new set may get
	fresh   []queue.KV          // not stored yet
}

// openRoutes reads what is stored in q, for groups that are configured.
func openRoutes(q *queue.Queue, groups []config.Forward) (*routes, error) {
	t := &routes{members: map[uint32][]string{}}
	t.use(groups)
	var err error
	if t.next, err = routesFrom(q); err != nil {
		return nil, err
	}
	q.Range(prefixRoute, func(key string, value []byte) bool {
		var n uint32
		var members []string
		if n, members, err = parseRoute(key, value); err != nil {
			return false
		}
		t.members[n] = members
		t.next = max(t.next, n+1)
		return true
	})
	if _, repaired := q.Get(queue.RepairedKey); repaired {
		t.next += repairGap
		t.fresh = append(t.fresh, queue.KV{Key: keyRoutesFrom, Value: strconv.AppendUint(nil, uint64(t.next), 10)})
	}
	return t, err
}

// use has route 0, and every other that is for all groups, be for these.
func (t *routes) use(groups []config.Forward) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = nil
	for i := range groups {
		t.all = append(t.all, groups[i].Name)
	}
}

// number returns the route of each rule. Those that are new must be stored before a batch
// has one: see store.
func (t *routes) number(rules []config.Rule) ([]uint32, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	byRule := make([]uint32, len(rules))
	for i := range rules {
		members := membersOf(&rules[i])
		if len(members) == 0 {
			continue
		}
		var err error
		if byRule[i], err = t.numberOf(members); err != nil {
			return nil, err
		}
	}
	return byRule, nil
}

// membersOf is who gets what a rule matches, sorted; nobody is route 0.
func membersOf(r *config.Rule) []string {
	members := consumers(r)
	switch {
	case !r.Transfer:
	case r.Forward != nil:
		members = append(members, r.Forward...)
	case len(members) > 0:
		members = append(members, allGroups)
	}
	slices.Sort(members)
	return members
}

// numberOf returns the route of a set of members, a new number if it is new. The caller holds mu.
func (t *routes) numberOf(members []string) (uint32, error) {
	for n, have := range t.members {
		if slices.Equal(have, members) {
			return n, nil
		}
	}
	value, err := json.Marshal(members)
	if err != nil {
		return 0, fmt.Errorf("store the groups %q of a rule: %w", members, err)
	}
	n := t.next
	t.next++
	t.members[n] = members
	t.fresh = append(t.fresh, queue.KV{Key: fmt.Sprintf("%s%08x", prefixRoute, n), Value: value})
	return n, nil
}

// store puts what is new into q, in its order before any batch that is submitted after it
// returned.
func (t *routes) store(ctx context.Context, q *queue.Queue) error {
	t.mu.RLock()
	fresh := t.fresh
	t.mu.RUnlock()
	if len(fresh) == 0 {
		return nil
	}
	// Without the lock: the queue asks for routes while it has its own.
	if _, err := q.Submit(ctx, &queue.Txn{Set: fresh, Aside: true}); err != nil {
		return fmt.Errorf("store the routes of the rules: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fresh = t.fresh[len(fresh):]
	return nil
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

// withRoutes gives each rule its route.
func withRoutes(rules []capture.Rule, byRule []uint32) []capture.Rule {
	for i := range rules {
		rules[i].Route = byRule[i]
	}
	return rules
}

// of returns the names of the members that a route has, also of such as are configured no
// more. What is not known goes to every group. The caller must not change the list.
func (t *routes) of(route uint32) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	members, ok := t.members[route]
	if !ok {
		return t.all
	}
	if !slices.Contains(members, allGroups) {
		return members
	}
	return append(slices.DeleteFunc(slices.Clone(members), func(m string) bool { return m == allGroups }), t.all...)
}
