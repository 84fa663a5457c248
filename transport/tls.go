package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
)

// errTLS is a TLS handshake that failed, on whichever side.
var errTLS = errors.New("transport: TLS handshake failed")

// maxEarlyTLS is how many bytes a server reads before the handshakes are done: a chain of
// certificates and a HELLO fit many times.
const maxEarlyTLS = 32 << 10

// maxFirstRecord is the longest first record, a ClientHello of less than 2 KiB: crypto/tls
// makes room for a whole record when its header comes.
const maxFirstRecord = 4 << 10

// earlyConn is the TCP connection below a server's TLS. It stops reading when a peer that
// is not known yet sends too much.
type earlyConn struct {
	net.Conn
	left atomic.Int64 // bytes that may still be read; what a read brings above it is kept
	done atomic.Bool
	head []byte // the first record's header, as far as it came
}

func newEarlyConn(nc net.Conn) *earlyConn {
	c := &earlyConn{Conn: nc}
	c.left.Store(maxEarlyTLS)
	return c
}

func (c *earlyConn) Read(p []byte) (int, error) {
	if c.done.Load() {
		return c.Conn.Read(p)
	}
	if c.left.Load() <= 0 {
		return 0, fmt.Errorf("%w: more than %d bytes before the handshake was done", errTooLarge, maxEarlyTLS)
	}
	n, err := c.Conn.Read(p)
	c.left.Add(-int64(n))
	const size = 5 // type, version, length (RFC 8446, section 5.1)
	if len(c.head) < size {
		c.head = append(c.head, p[:min(n, size-len(c.head))]...)
		if len(c.head) == size {
			if long := int(binary.BigEndian.Uint16(c.head[3:])); long > maxFirstRecord {
				return 0, fmt.Errorf("%w: begins with a record of %d bytes, at most %d are taken", errTooLarge, long, maxFirstRecord)
			}
		}
	}
	return n, err
}

// NetConn is the connection below, as *tls.Conn has it.
func (c *earlyConn) NetConn() net.Conn { return c.Conn }

// lift ends the limit.
func (c *earlyConn) lift() { c.done.Store(true) }

// clientTLS wraps nc, for a server that is to have a certificate for the host of address.
func clientTLS(nc net.Conn, cfg *tls.Config, address string) *tls.Conn {
	cfg = cfg.Clone()
	if cfg.ServerName == "" {
		host, _, _ := net.SplitHostPort(address)
		cfg.ServerName, _, _ = strings.Cut(host, "%") // no zone
	}
	return tls.Client(nc, cfg)
}

// handshakeTLS does the TLS handshake of nc, if it is a TLS connection. Deadlines are the
// caller's.
func handshakeTLS(ctx context.Context, nc net.Conn) error {
	tc, ok := nc.(*tls.Conn)
	if !ok {
		return nil
	}
	err := tc.HandshakeContext(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: no TLS handshake in time: %w", ErrSilent, err)
	}
	return fmt.Errorf("%w: %w", errTLS, err)
}

// peerNames returns the names in the verified certificate of the peer, in lower case; nil
// without TLS or without a certificate.
func peerNames(nc net.Conn) []string {
	tc, ok := nc.(*tls.Conn)
	if !ok {
		return nil
	}
	certs := tc.ConnectionState().VerifiedChains
	if len(certs) == 0 || len(certs[0]) == 0 {
		return nil
	}
	return certificateNames(certs[0][0])
}

// certificateNames are the DNS names and the common name of c, each once.
func certificateNames(c *x509.Certificate) []string {
	var names []string
	for _, n := range append(slices.Clone(c.DNSNames), c.Subject.CommonName) {
		if n = strings.ToLower(n); n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}
