package rig

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNoLink is returned for a fault of a link by a site on the loopback.
var ErrNoLink = errors.New("the site has no links of its own")

// Way is a direction as the host sees it.
type Way string

// The directions.
const (
	In  Way = "input"
	Out Way = "output"
)

// Cut drops every TCP packet that goes one way, without a word: the host can speak and not
// hear, or hear and not speak. Both ways one after the other is a cable pulled. What was set
// before by Cut, Lose or Reset stays in force beside it. Given peers, only what comes from
// them or goes to them is dropped.
func (h *Host) Cut(way Way, peers ...*Host) error {
	if len(peers) == 0 {
		return h.fault(way, "drop")
	}
	addrs := make([]string, len(peers))
	for i, p := range peers {
		addrs[i] = p.IP
	}
	return h.fault(way, fmt.Sprintf("ip %s { %s } drop", map[Way]string{In: "saddr", Out: "daddr"}[way], strings.Join(addrs, ", ")))
}

// Lose drops share percent (1 to 100) of the TCP packets that go one way, at random.
func (h *Host) Lose(way Way, share int) error {
	return h.fault(way, fmt.Sprintf("numgen random mod 100 <= %d drop", share-1))
}

// Reset answers share percent (1 to 100) of all TCP packets that come in with a RST: connections
// break one after the other, and new ones are mostly refused.
func (h *Host) Reset(share int) error {
	return h.fault(In, fmt.Sprintf("numgen random mod 100 <= %d reject with tcp reset", share-1))
}

// Heal ends every fault of the host's link.
func (h *Host) Heal() error {
	if h.net == nil {
		return ErrNoLink
	}
	// Made first, so that deleting it is no error where no fault was.
	return h.net.runWith("table inet fault\ndelete table inet fault\n", "nft", "-f", "-")
}

// fault adds a rule for TCP to the host's own packet filter. The loopback, where a host talks
// to itself, is spared.
func (h *Host) fault(way Way, rule string) error {
	if h.net == nil {
		return ErrNoLink
	}
	name := map[Way]string{In: "iifname", Out: "oifname"}[way]
	text := fmt.Sprintf(`table inet fault {
	chain %[1]s {
		type filter hook %[1]s priority 0; policy accept;
		%[2]s "eth0" meta l4proto tcp %[3]s
	}
}
`, way, name, rule)
	if err := h.net.runWith(text, "nft", "-f", "-"); err != nil {
		return fmt.Errorf("break the link of %s: %w", h.Name, err)
	}
	return nil
}
