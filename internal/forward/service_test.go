package forward

import (
	"context"
	"strings"
	"testing"
	"time"

	"ftfuse/internal/batch"
	"ftfuse/transport"
)

// service is a group of one DNS service.
func service() GroupConfig {
	return GroupConfig{Name: "g", Mode: Any, Primary: []string{"srv+_ftfuse._tcp.example.org"}, FailbackAfter: 10 * time.Second}
}

// hosts are targets of one priority.
func hosts(names ...string) (all []transport.Target) {
	for _, name := range names {
		all = append(all, transport.Target{Host: name, Port: 7400, Priority: 1})
	}
	return all
}

// replacedInDNS has the host a of the service, which answers so, be given two batches, and the DNS
// have b in its place then.
func (r *rig) replacedInDNS(answer func(batch.Sealed) (transport.Verdict, bool)) (l *line, b *peerServer) {
	r.up("a", 2, answer)
	b = r.up("b", 3, nil)
	r.start()
	r.pass(time.Millisecond)
	l = r.f.lines[0]
	s := target0(r.t, l)
	l.adopt(s, hosts("a"))
	r.submit(rigLane(1), 1, 2)
	r.pass(time.Second)
	l.adopt(s, hosts("b"))
	return l, b
}

// TestAHostThatFailsBehindItsRemovalIsLeft: the DNS of a service has another host, and the old
// one dies, or falls silent, with batches that it did not answer. They go to the new one, and
// what waited for their answers.
func TestAHostThatFailsBehindItsRemovalIsLeft(t *testing.T) {
	resolver := noDNS(t)
	for name, fail := range map[string]func(r *rig){
		"killed": func(r *rig) { r.down("a") },
		"silent": func(r *rig) { r.net.cut("a", "here", true) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				r.o.Resolver = resolver
				_, b := r.replacedInDNS(never)
				r.pass(time.Second) // b is connected, the flow waits for what a was given
				fail(r)
				r.submit(rigLane(1), 3, 4)
				r.pass(30 * time.Second)
				r.want("the one that is left", b.numbers(), "1! 2! 3 4")
				if n := r.waiting(); n != 0 {
					t.Errorf("%d batches wait for a host that is gone", n)
				}
			}, service())
		})
	}
}

// TestAHostThatWasRemovedIsNotTakenForConnected: else a stop waits for it, and the service is
// looked up once a minute only while none of its hosts is there.
func TestAHostThatWasRemovedIsNotTakenForConnected(t *testing.T) {
	resolver := noDNS(t)
	inBubble(t, func(r *rig) {
		r.o.Resolver = resolver
		l, b := r.replacedInDNS(nil)
		r.pass(time.Minute) // a's client has ended
		r.submit(rigLane(1), 3, 4)
		r.pass(time.Second)
		r.want("the one that is left", b.numbers(), "3 4")
		r.down("b")
		r.pass(time.Minute)
		if l.connected() {
			t.Error("connected to a service of which no host is there")
		}
		r.submit(rigLane(1), 5, 6)
		r.pass(time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := r.f.Drain(ctx); err == nil || !strings.Contains(err.Error(), "no destination is connected") {
			t.Errorf("a stop waits for it: %v", err)
		}
	}, service())
}
