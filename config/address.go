package config

import (
	"net"
	"strings"

	"ftfuse/internal/dest"
)

// destination checks an address to connect to.
func (ps *problems) destination(path, addr string) (d dest.Destination, ok bool) {
	d, err := dest.Parse(addr)
	if err != nil {
		ps.add(ErrValue, path, `write "HOST:7401", "[2001:db8::1]:7401" for an IPv6 address, or "srv+_ftfuse._tcp.DOMAIN" for what the DNS says`,
			"%s: %q %v", plainKey(path), addr, err)
	}
	return d, err == nil
}

// listenAddress checks an address to listen on; port 0 is any free one.
func (ps *problems) listenAddress(path, addr string, optional bool) {
	if optional && addr == "" {
		return
	}
	if strings.Contains(path, ".http.") {
		if _, own := ps.pos[path]; !own {
			return // inherited, and checked where it stands
		}
	}
	if _, _, err := dest.Split(addr); err != nil {
		ps.add(ErrValue, path, `write ":PORT" for all addresses, or "127.0.0.1:PORT"`, "%s = %q %v", plainKey(path), addr, err)
	}
}

// listener is an address that a role listens on.
type listener struct {
	path string
	addr string
	host string
	port uint16
}

// listeners returns every address of the file once; one that several roles inherit
// is theirs to share out.
func (c *Config) listeners() []listener {
	var all []listener
	seen := map[string]bool{}
	add := func(path, addr string) {
		host, port, err := dest.Split(addr)
		if err != nil || port == 0 || seen[path] {
			return
		}
		seen[path] = true
		all = append(all, listener{path, addr, host, port})
	}
	for _, r := range c.Roles() {
		path := string(r) + ".http.listen"
		if _, own := c.pos[path]; !own {
			path = "http.listen"
		}
		add(path, c.HTTPFor(r).Listen)
	}
	if c.Relay != nil {
		add("relay.listen", c.Relay.Listen)
	}
	if c.Receive != nil {
		add("receive.listen", c.Receive.Listen)
	}
	return all
}

// validateListeners refuses two listeners on one address, and a relay that forwards
// to itself.
func (c *Config) validateListeners(ps *problems) {
	all := c.listeners()
	for i, a := range all {
		for _, b := range all[:i] {
			if a.port != b.port || !sameHost(a.host, b.host) {
				continue
			}
			later, earlier := a, b
			if ps.pos.line(a.path) < ps.pos.line(b.path) {
				later, earlier = b, a
			}
			ps.add(ErrConflict, later.path, "write another port", "%s = %q and %s = %q (line %d) are the same address",
				plainKey(later.path), later.addr, plainKey(earlier.path), earlier.addr, ps.pos.line(earlier.path))
		}
	}
	if c.Relay == nil {
		return
	}
	listen, own, err := dest.Split(c.Relay.Listen)
	for _, f := range c.Relay.Forwards {
		for _, list := range []struct {
			key  string
			addr []string
		}{{"primary", f.Primary}, {"secondary", f.Secondary}} {
			for j, addr := range list.addr {
				host, port, aerr := dest.Split(addr)
				if err == nil && aerr == nil && port == own && (host == c.Host || loopback(host) && sameHost(listen, host)) {
					ps.add(ErrConflict, element(join(f.key, list.key), j), "name the next host", "relay.forward names %q, where this relay listens itself", addr)
				}
			}
		}
	}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

func wildcard(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

func sameHost(a, b string) bool {
	return wildcard(a) || wildcard(b) || strings.EqualFold(a, b) || net.ParseIP(a).Equal(net.ParseIP(b)) && net.ParseIP(a) != nil ||
		strings.EqualFold(a, "localhost") && loopback(b) || loopback(a) && strings.EqualFold(b, "localhost")
}
