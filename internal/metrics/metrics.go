// Package metrics makes Prometheus metrics of a role's status.
//
// Names begin with ftfuse_, counters end in _total, units are base units (bytes, seconds).
// There are two labels: peer, which is who the data are for or from (GROUP/ADDRESS of a
// destination, GROUP of a group, a cursor's name, a sender's host), and rule. A reason is
// part of the name, so that each reason can be alerted on by itself.
package metrics

import (
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ftfuse/internal/status"
)

// Limits of the handler.
const (
	maxScrapes    = 4 // at a time
	scrapeTimeout = 10 * time.Second
)

// Handler serves what now returns, and what the Go runtime and the kernel say of the
// process.
func Handler(now func() status.Role, log *slog.Logger) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{now}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout,
	})
}

// collector asks for the status at each scrape.
type collector struct{ now func() status.Role }

// Describe says nothing: which metrics there are depends on the role.
func (collector) Describe(chan<- *prometheus.Desc) {}

func (c collector) Collect(out chan<- prometheus.Metric) {
	role := c.now()
	f := families{}
	f.role(&role)
	f.send(out)
}

// family is one metric with its values by label.
type family struct {
	help   string
	kind   prometheus.ValueType
	label  string // peer, rule or ""
	values map[string]float64
}

// families are the metrics of one scrape by name. What is set twice is added up.
type families map[string]*family

func (f families) add(kind prometheus.ValueType, name, help, label, who string, v float64) {
	name = "ftfuse_" + clean(name)
	if kind == prometheus.CounterValue {
		name += "_total"
	}
	m := f[name]
	if m == nil {
		m = &family{help: help, kind: kind, label: label, values: map[string]float64{}}
		f[name] = m
	}
	if m.label == label {
		m.values[strings.ToValidUTF8(who, "�")] += v
	}
}

func (f families) gauge(name, help string, v float64) {
	f.add(prometheus.GaugeValue, name, help, "", "", v)
}

func (f families) counter(name, help string, v uint64) {
	f.add(prometheus.CounterValue, name, help, "", "", float64(v))
}

// tally adds three counters of one thing.
func (f families) tally(what, help string, t status.Tally) {
	f.counter(what+"_batches", "Batches "+help, t.Batches)
	f.counter(what+"_records", "Records "+help, t.Records)
	f.counter(what+"_bytes", "Bytes that programs wrote, "+help, t.Bytes)
}

// losses adds the sum over all reasons, and each reason by itself.
func (f families) losses(what, help string, all []status.Loss) {
	f.tally(what, help+", for any reason.", status.Tally{})
	for _, l := range all {
		f.tally(what, "", l.Tally)
		f.tally(what+"_"+l.Reason, help+", reason "+l.Reason+".", l.Tally)
	}
}

// clean makes a part of a metric's name of any text.
func clean(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '_'
	}, name)
}

func (f families) send(out chan<- prometheus.Metric) {
	for name, m := range f {
		var labels []string
		if m.label != "" {
			labels = []string{m.label}
		}
		desc := prometheus.NewDesc(name, m.help, labels, nil)
		for who, v := range m.values {
			var values []string
			if m.label != "" {
				values = []string{who}
			}
			out <- prometheus.MustNewConstMetric(desc, m.kind, v, values...)
		}
	}
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func timestamp(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}
