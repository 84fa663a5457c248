package transport

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// OwnNames, as an element of a list of hosts in NewAdmission, stands for the names in the
// peer's certificate.
const OwnNames = "@self"

// Admission says for which hosts a peer may speak, by the names in its certificate. It
// does not change and is safe for concurrent use. A nil *Admission admits everybody.
type Admission struct {
	listed bool
	rules  []admissionRule
}

type admissionRule struct {
	name  string // glob on the names of the certificate
	hosts []string
}

// NewAdmission makes one of an allow table: globs on the names of certificates, each with
// the globs of the hosts that such a peer may speak for. Case does not count; in a glob,
// "*" takes dots too.
//
// A nil table means that a certificate may speak for the hosts that it names, and nobody
// else. A table, also an empty one, is the whole list: a certificate without a name that
// some key of it matches is not admitted; one that is listed may speak for the hosts that
// it names, and for what the lists of all keys that match it say.
func NewAdmission(allow map[string][]string) (*Admission, error) {
	a := &Admission{listed: allow != nil}
	for _, name := range slices.Sorted(maps.Keys(allow)) {
		rule := admissionRule{name: strings.ToLower(name)}
		if name == "" || !doublestar.ValidatePattern(rule.name) {
			return nil, fmt.Errorf("allow: the certificate name %q is not a glob", name)
		}
		for _, host := range allow[name] {
			if host == "" || !doublestar.ValidatePattern(host) {
				return nil, fmt.Errorf("allow: %q: the host %q is not a glob", name, host)
			}
			rule.hosts = append(rule.hosts, strings.ToLower(host))
		}
		a.rules = append(a.rules, rule)
	}
	return a, nil
}

// Peer returns nil if p may connect under the host name that it gives itself, else what
// to tell it.
func (a *Admission) Peer(p Peer) error {
	if a == nil {
		return nil
	}
	if len(p.Names) == 0 {
		return errors.New("it has no certificate with a name in it")
	}
	if a.listed && !slices.ContainsFunc(a.rules, func(r admissionRule) bool { return r.covers(p.Names) }) {
		return fmt.Errorf("its certificate is for %s, which is not in the list of whom to allow", strings.Join(p.Names, ", "))
	}
	if !a.May(p, p.Host) {
		return fmt.Errorf("it calls itself %q, and its certificate for %s may not speak for that host", p.Host, strings.Join(p.Names, ", "))
	}
	return nil
}

// May reports whether p may speak for host: send batches that were sealed there.
func (a *Admission) May(p Peer, host string) bool {
	if a == nil {
		return true
	}
	if host == "" {
		return false
	}
	host = strings.ToLower(host)
	own := slices.Contains(p.Names, host)
	if !a.listed {
		return own
	}
	for _, r := range a.rules {
		if r.covers(p.Names) && (own || slices.ContainsFunc(r.hosts, func(glob string) bool {
			return glob != OwnNames && doublestar.MatchUnvalidated(glob, host)
		})) {
			return true
		}
	}
	return false
}

// covers reports whether one of names is meant by r.
func (r *admissionRule) covers(names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return doublestar.MatchUnvalidated(r.name, n) })
}
