// Package dest reads addresses as operators write them: what to listen on, and where to
// send to. It looks nothing up.
package dest

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// ErrAddress is what every error of this package is.
var ErrAddress = errors.New("bad address")

// servicePrefix marks a destination that is looked up as DNS SRV records.
const servicePrefix = "srv+"

// Destination is where to send to: a host and a port, or a service whose hosts and ports
// the DNS knows (SRV, RFC 2782). Comparable.
type Destination struct {
	Host    string // a name or an IP address without brackets; "" for a service
	Port    uint16 // never 0; 0 for a service
	Service string // "_ftfuse._tcp.example.org"; "" for a host
}

// IsService reports whether d is looked up as SRV records and may stand for several hosts.
func (d Destination) IsService() bool { return d.Service != "" }

// String is the form that Parse reads.
func (d Destination) String() string {
	if d.IsService() {
		return servicePrefix + d.Service
	}
	return net.JoinHostPort(d.Host, strconv.Itoa(int(d.Port)))
}

// Parse reads "host:port", "[v6]:port" or "srv+_service._tcp.domain". Errors are
// ErrAddress and say what is wrong with the text, without the text itself.
func Parse(text string) (Destination, error) {
	if name, ok := strings.CutPrefix(text, servicePrefix); ok {
		if err := checkService(name); err != nil {
			return Destination{}, err
		}
		return Destination{Service: strings.TrimSuffix(name, ".")}, nil
	}
	host, port, err := Split(text)
	switch {
	case err != nil:
		return Destination{}, err
	case host == "":
		return Destination{}, addressError("names no host to connect to")
	case port == 0:
		return Destination{}, addressError("names port 0, to which nothing can connect")
	}
	return Destination{Host: host, Port: port}, nil
}

// Split reads host:port with a numeric port, as Parse; "" is a host too and 0 a port,
// since one can listen on them.
func Split(addr string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		var ae *net.AddrError
		if errors.As(err, &ae) {
			return "", 0, addressError("has no host:port form (%s)", ae.Err)
		}
		return "", 0, addressError("%v", err)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, addressError("has the port %q, which is not a number from 0 to 65535", text)
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || strings.ContainsRune("/@\"'\x7f", r) }) {
		return "", 0, addressError("has the host %q, which is not a name or an address", host)
	}
	return host, uint16(n), nil
}

// checkService wants _service._tcp.domain, each label as the DNS takes it.
func checkService(name string) error {
	labels := strings.Split(strings.TrimSuffix(name, "."), ".")
	if len(labels) < 3 || !strings.HasPrefix(labels[0], "_") || !strings.EqualFold(labels[1], "_tcp") {
		return addressError("is not of the form srv+_ftfuse._tcp.DOMAIN")
	}
	if len(name) > 253 {
		return addressError("has a name of %d bytes, and the DNS takes 253", len(name))
	}
	for _, l := range labels {
		if l == "" || l == "_" || len(l) > 63 || strings.ContainsFunc(l, func(r rune) bool {
			return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		}) {
			return addressError("has the label %q, which the DNS does not take", l)
		}
	}
	return nil
}

// describedError is an ErrAddress whose text stands behind the address in a sentence.
type describedError struct{ text string }

func (e *describedError) Error() string { return e.text }
func (e *describedError) Unwrap() error { return ErrAddress }

func addressError(format string, args ...any) error {
	return &describedError{fmt.Sprintf(format, args...)}
}
