package receive

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ftfuse/config"
	"ftfuse/internal/certs"
	"ftfuse/transport"
)

// certificate makes one for a host, and for the address that it listens on, by the CA in dir.
func certificate(t *testing.T, dir string, names ...string) config.TLS {
	t.Helper()
	m, err := certs.MakeHost(dir, dir, names, time.Hour, false)
	if err != nil {
		t.Fatal(err)
	}
	return config.TLS{Cert: m.Cert, Key: m.Key, CA: filepath.Join(dir, "ca.pem")}
}

// TestRecordsOfAnotherHostAreRefused: whoever may send batches of one host, as that host or
// as a relay for it, over TLS or plain TCP, does not get records of another one into its
// files by putting them into such a batch: each is refused as denied and counted, and logged
// without filling the log; what it sends of its own is taken.
func TestRecordsOfAnotherHostAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		peer  string // whose certificate; "": plain TCP
		allow map[string][]string
	}{
		"the host itself":         {"web-01", nil},
		"the host itself, listed": {"web-01", map[string][]string{"web-*": {transport.OwnNames}}},
		"a relay for the host":    {"relay-a", map[string][]string{"relay-a": {"web-01"}}},
		"plain TCP":               {"", nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, f := newSetup(t), newFeeder(1)
			if f.host = "web-01"; c.peer != "" {
				site := t.TempDir()
				if _, err := certs.MakeCA(site, "test", time.Hour); err != nil {
					t.Fatal(err)
				}
				ip, _, err := net.SplitHostPort(s.Listen)
				if err != nil {
					t.Fatal(err)
				}
				s.TLS, s.Allow = certificate(t, site, "aggregator", ip), c.allow
				own := certificate(t, site, c.peer)
				store, err := certs.Open(own.Cert, own.Key, own.CA)
				if err != nil {
					t.Fatal(err)
				}
				f.host, f.tls = c.peer, store.Client
			}
			log := &lockedBuffer{}
			x := startLog(t, s, slog.New(slog.NewTextHandler(log, nil)))
			foreign := [][]rec{
				{{host: "victim", path: "f", data: "forged\n"}},
				{{host: "web-01", path: "f", data: "mine\n"}, {host: "victim", path: "f", data: "forged\n"}},
				{{host: "victim", path: "f", data: "forged\n"}, {host: "web-01", path: "f", data: "mine\n"}},
				{{host: "WEB-01", path: "f", data: "forged\n"}},
				{{host: "", path: "f", data: "forged\n"}},
			}
			for _, recs := range foreign {
				b := f.seal(recs...)
				b.Host = "web-01"
				f.send(b)
			}
			f.add(rec{host: "web-01", path: "f", data: "honest\n"})
			f.connect(t, s.Listen)
			f.until(t, "the refusals and an ack", func() bool { return len(f.refused) == len(foreign) && len(f.acked) == 1 && f.final.Count() == 1 })
			for _, v := range f.refused {
				if v.Code != transport.Denied || !strings.Contains(v.Text, "record of") {
					t.Errorf("refused with %+v", v)
				}
			}
			if n := x.r.Stats().Foreign; n != uint64(len(foreign)) {
				t.Errorf("%d were counted", n)
			}
			if n := x.r.status().Peers.Refused["foreign_host"]; n != uint64(len(foreign)) {
				t.Errorf("status has %d", n)
			}
			x.end()
			if n := bytes.Count(log.Bytes(), []byte("code=denied")); n != 1 {
				t.Errorf("logged %d times, want once in ten seconds:\n%s", n, log.Bytes())
			}
			if got, err := os.ReadFile(s.out("web-01", "f")); err != nil || string(got) != "honest\n" {
				t.Errorf("its own file holds %q, %v", got, err)
			}
			for _, host := range []string{"victim", "WEB-01"} {
				if _, err := os.Stat(s.out(host)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("files of %q were made: %v", host, err)
				}
			}
		})
	}
}
