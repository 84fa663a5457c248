package k2hft

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

// cluster is what the CHMPX sections of a configuration say of the servers.
type cluster struct {
	d       *document
	global  *section
	servers []server
	tls     bool
}

// server is one address of SVRNODE.
type server struct {
	addr string
	from []*entry
}

// readCluster reads GLOBAL and SVRNODE.
func readCluster(d *document) *cluster {
	c := &cluster{d: d, global: d.one(secChm)}
	c.tls = c.global.yes("SSL", false)
	for _, node := range d.all(secNode) {
		if node.get("SSL") != nil && node.yes("SSL", false) {
			c.tls = true
		}
		c.addServers(node)
	}
	return c
}

// addServers adds the addresses of one SVRNODE: its ENDPOINTS, or each host of its NAME.
func (c *cluster) addServers(node *section) {
	if e := node.get("ENDPOINTS"); e != nil && e.value != "" && !strings.EqualFold(e.value, "null") {
		name := node.get("NAME")
		for _, addr := range strings.Split(e.value, ",") {
			from := []*entry{e, name}
			if addr = strings.TrimSpace(addr); !strings.Contains(addr, ":") {
				port, p := c.port(node)
				addr, from = net.JoinHostPort(addr, port), append(from, p)
			}
			c.servers = append(c.servers, server{addr, from})
		}
		return
	}
	e := node.get("NAME")
	if e == nil {
		return
	}
	port, p := c.port(node)
	for _, host := range hosts(e.value) {
		c.servers = append(c.servers, server{net.JoinHostPort(host, port), []*entry{e, p}})
	}
}

// defaultPort is ours, for a configuration without PORT.
const defaultPort = "7401"

// port is where the servers of node listen, and the entry that says so.
func (c *cluster) port(node *section) (string, *entry) {
	for _, s := range []*section{node, c.global} {
		if p := s.get("PORT"); p != nil && p.value != "" {
			return p.value, p
		}
	}
	return defaultPort, nil
}

// listen is where this host listens: the port of the SVRNODE that has its control port.
func (c *cluster) listen() (string, []*entry) {
	own := c.global.value("SELFCTLPORT")
	for _, node := range c.d.all(secNode) {
		if ctl := node.get("CTLPORT"); ctl != nil && ctl.value == own && node.get("PORT") != nil {
			return ":" + node.value("PORT"), []*entry{node.get("PORT"), ctl, c.global.get("SELFCTLPORT")}
		}
	}
	port, from := c.port(c.global)
	return ":" + port, []*entry{from}
}

// hosts expands a NAME: commas, and [1-3], [a-c], [x,y] inside a name.
func hosts(name string) []string {
	var all []string
	depth, from := 0, 0
	for i := 0; i <= len(name); i++ {
		switch {
		case i == len(name) || name[i] == ',' && depth == 0:
			if part := strings.TrimSpace(name[from:i]); part != "" {
				names := expand(part)
				if len(names) > mostHosts {
					names = []string{part}
				}
				all = append(all, names...)
			}
			from = i + 1
		case name[i] == '[':
			depth++
		case name[i] == ']':
			depth--
		}
	}
	return all
}

const mostHosts = 256 // of one NAME; more are left as they stand

// expand expands the first bracket of a name, and then the rest; it ends above mostHosts.
func expand(name string) []string {
	before, rest, ok := strings.Cut(name, "[")
	inner, after, closed := strings.Cut(rest, "]")
	if !ok || !closed {
		return []string{name}
	}
	var all []string
	for _, x := range strings.Split(inner, ",") {
		for _, v := range span(strings.TrimSpace(x)) {
			for _, tail := range expand(after) {
				if all = append(all, before+v+tail); len(all) > mostHosts {
					return all
				}
			}
		}
	}
	return all
}

// span returns what a-b stands for: numbers, with the zeros of a, or letters. What runs
// backwards is left as it stands.
func span(x string) []string {
	a, b, ok := strings.Cut(x, "-")
	if !ok {
		return []string{x}
	}
	var all []string
	from, err1 := strconv.Atoi(a)
	to, err2 := strconv.Atoi(b)
	switch {
	case err1 == nil && err2 == nil && from <= to && to-from < mostHosts:
		for i := range to - from + 1 {
			all = append(all, fmt.Sprintf("%0*d", len(a), from+i))
		}
	case len(a) == 1 && len(b) == 1 && a[0] <= b[0]:
		for c := int(a[0]); c <= int(b[0]); c++ {
			all = append(all, string(rune(c)))
		}
	default:
		return []string{x}
	}
	return all
}

// forward writes the group of destinations that the servers are.
func (w *writer) forward(role string, c *cluster, dtor *section) {
	w.table("[[" + role + ".forward]]")
	if g := c.global.get("GROUP"); g != nil && g.value != "" {
		w.key("name", text(strings.ToLower(g.value)), g)
	}
	deliver, broadcast := c.global.get("DELIVERMODE"), dtor.get("K2HTPDTOR_BROADCAST")
	switch {
	case broadcast != nil && dtor.yes("K2HTPDTOR_BROADCAST", false):
		w.key("mode", text("broadcast"), broadcast, deliver)
	case deliver != nil && strings.EqualFold(deliver.value, "hash"):
		w.key("mode", text("hash"), deliver, broadcast)
	default:
		w.key("mode", text("any"), deliver, broadcast)
	}
	addrs, from := c.addresses()
	if len(addrs) == 0 {
		addrs = []string{"localhost:" + defaultPort}
		w.none(nil, "no SVRNODE says where the servers are: name the receivers, or the relays before them")
	}
	w.key("primary", list(addrs), from...)
	if e := c.global.get("REPLICA"); e != nil && e.value != "" && e.value != "0" {
		w.none(e, "no copies on other servers; with mode = \"broadcast\" each has all, and keep_until = \"final\" in [%s.queue] keeps each batch here until it is in the output", role)
	}
}

// addresses returns each address once, and the entries that they are from.
func (c *cluster) addresses() (addrs []string, from []*entry) {
	seen, seenFrom := map[string]bool{}, map[*entry]bool{}
	for _, s := range c.servers {
		if !seen[s.addr] {
			seen[s.addr] = true
			addrs = append(addrs, s.addr)
		}
		for _, e := range s.from {
			if e != nil && !seenFrom[e] {
				seenFrom[e] = true
				from = append(from, e)
			}
		}
	}
	return addrs, from
}

// security writes tls where the cluster has it. server says which certificates are this
// host's.
func (w *writer) security(c *cluster, server bool) {
	all := append([]*section{}, c.d.all(secNode)...)
	all = append(append(all, c.d.all(secSlave)...), c.global)
	find := func(keys ...string) *entry {
		for _, key := range keys {
			for _, s := range all {
				if e := s.get(key); e != nil && e.value != "" && !strings.EqualFold(e.value, "null") {
					return e
				}
			}
		}
		return nil
	}
	for _, s := range all {
		if e := s.get("SSL"); e != nil {
			e.said = true
		}
	}
	if !c.tls {
		w.say("SSL is off: plain TCP here, too. With tls = { cert, key, ca } both ends show a certificate; `ftfuse cert` makes them.")
		return
	}
	cert, key := find("SLAVE_CERT", "SERVER_CERT"), find("SLAVE_PRIKEY", "SERVER_PRIKEY")
	if server {
		cert, key = find("SERVER_CERT", "SLAVE_CERT"), find("SERVER_PRIKEY", "SLAVE_PRIKEY")
	}
	ca := find("CAPATH")
	path := func(e *entry, other string) string {
		if e == nil || !strings.HasPrefix(e.value, "/") {
			w.none(e, "the path of a PEM file is needed: `ftfuse cert` makes one, here taken to be %s", other)
			return text(other)
		}
		return text(e.value)
	}
	cp, kp, ap := path(cert, "/etc/ftfuse/cert.pem"), path(key, "/etc/ftfuse/key.pem"), path(ca, "/etc/ftfuse/ca.pem")
	if ca != nil {
		w.say("ca must be one PEM file; a directory of CAPATH does not do. Each end must show a certificate, whatever SSL_VERIFY_PEER says.")
	}
	w.key("tls", "{ cert = "+cp+", key = "+kp+", ca = "+ap+" }", cert, key, ca)
}
