package dest

import (
	"errors"
	"strings"
	"testing"
)

func TestParseReadsWhatOperatorsWrite(t *testing.T) {
	for text, want := range map[string]Destination{
		"relay-a:7400":                  {Host: "relay-a", Port: 7400},
		"10.0.0.1:1":                    {Host: "10.0.0.1", Port: 1},
		"[2001:db8::1]:7401":            {Host: "2001:db8::1", Port: 7401},
		"[fe80::1%eth0]:7401":           {Host: "fe80::1%eth0", Port: 7401},
		"srv+_ftfuse._tcp.example.org":  {Service: "_ftfuse._tcp.example.org"},
		"srv+_ftfuse._TCP.example.org.": {Service: "_ftfuse._TCP.example.org"},
		"srv+_other._tcp.a":             {Service: "_other._tcp.a"},
	} {
		got, err := Parse(text)
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", text, got, err, want)
		}
		again, err := Parse(got.String())
		if err != nil || again != got {
			t.Errorf("%q is written as %q and read back as %+v, %v", text, got, again, err)
		}
	}
}

func TestParseRefusesWhatNobodyCanConnectTo(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "no host:port form",
		"relay-a":                           "missing port",
		":7400":                             "no host",
		"a:0":                               "port 0",
		"a:http":                            `"http"`,
		"a:65536":                           `"65536"`,
		"2001:db8::1:7401":                  "too many colons",
		"tcp://a:1":                         "too many colons",
		"a b:1":                             "not a name",
		"user@a:1":                          "not a name",
		"srv+":                              "srv+_ftfuse._tcp.DOMAIN",
		"srv+example.org":                   "srv+_ftfuse._tcp.DOMAIN",
		"srv+_ftfuse._udp.example.org":      "srv+_ftfuse._tcp.DOMAIN",
		"srv+_ftfuse._tcp":                  "srv+_ftfuse._tcp.DOMAIN",
		"srv+_ftfuse._tcp.example.org:7400": "the label",
		"srv+_ftfuse._tcp.a..b":             `the label ""`,
		"srv+_._tcp.a":                      `the label "_"`,
		"srv+_ftfuse._tcp." + strings.Repeat("a", 64):   "the label",
		"srv+_ftfuse._tcp." + strings.Repeat("ab.", 90): "253",
	} {
		got, err := Parse(text)
		if !errors.Is(err, ErrAddress) || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q) = %+v, %v; want an ErrAddress with %q", text, got, err, want)
		}
	}
}
