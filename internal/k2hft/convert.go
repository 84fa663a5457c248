package k2hft

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Options of Convert.
type Options struct {
	Mount Mountpoint
	// Open reads a file that the configuration names: INCLUDE, TRANSCONF,
	// K2HTPDTOR_CHMPXCONF.
	Open func(name string) ([]byte, error)
}

// Result is a configuration of ftfuse.
type Result struct {
	TOML  []byte
	Notes int // comments that begin with NOTE: what has no counterpart, or another meaning
}

// Convert returns what ftfuse's configuration is for that of K2HFTFUSE or K2HFTFUSESVR in
// text. name is its file's: messages, the guess at its format (by its ending, or else by
// what it begins with), and the place of files beside it go by that.
//
// Every key of text is in a comment of the result: behind what stands for it, in a NOTE, or
// among those for which nothing has to be set.
// The errors are ErrSyntax and ErrSections, and those of Options.Open for an INCLUDE.
func Convert(name string, text []byte, o Options) (Result, error) {
	d, err := parse(name, text, o.Open)
	if err != nil {
		return Result{}, err
	}
	if !d.has(secMain) && !d.has(secSvr) && !d.has(secFile) && !d.has(secDir) {
		return Result{}, fmt.Errorf("%s %w", name, ErrSections)
	}
	w := &writer{}
	w.say("From %s, by `ftfuse convert`. Behind each key stands what it is from; NOTE is before what", name)
	w.say("has no counterpart, or another meaning. Check it with `ftfuse check -c FILE`; all keys are in")
	w.say("docs/configuration.md.")
	w.b.WriteByte('\n')
	c := readCluster(d)
	w.security(c, d.has(secSvr))
	if d.has(secSvr) {
		w.svr(d, c, func() *cluster { return w.follow(d.one(secSvr).get("TRANSCONF"), o) })
	}
	if d.has(secMain) || d.has(secFile) || d.has(secDir) {
		to := c
		if next := w.follow(d.one(secDtor).get("K2HTPDTOR_CHMPXCONF"), o); next != nil {
			to = next
		}
		w.mount(d, to, o.Mount)
	}
	w.encoding(d)
	w.rest(d)
	return Result{TOML: []byte(w.b.String()), Notes: w.notes}, nil
}

// follow reads the CHMPX configuration that e names, or is. nil: there is none.
func (w *writer) follow(e *entry, o Options) *cluster {
	if e == nil || e.value == "" {
		return nil
	}
	name, text := e.value, []byte(e.value)
	if strings.HasPrefix(strings.TrimSpace(e.value), "{") {
		name = fmt.Sprintf("%s of line %d", e.key, e.line)
	} else {
		var err error
		if text, err = o.Open(e.value); err != nil {
			w.none(e, "%v", err)
			return nil
		}
	}
	d, err := parse(name, text, o.Open)
	if err != nil {
		w.none(e, "%v", err)
		return nil
	}
	e.said = true
	return readCluster(d)
}

// encoding names the values that TOML cannot hold as they are. (Of filters and targets it was
// said where they stand.)
func (w *writer) encoding(d *document) {
	for _, s := range d.sections {
		for _, e := range s.entries {
			if e.filter == nil && e.key != "TARGET" && !utf8.ValidString(e.value) {
				w.none(e, "%v: U+FFFD stands for such bytes; what this configuration uses of it has to be named otherwise", errEncoding)
			}
		}
	}
}

// rest names what nothing stands for, by why that is so.
func (w *writer) rest(d *document) {
	by := map[string][]string{}
	var order []string
	for _, s := range d.sections {
		for _, e := range s.entries {
			reason := why(e.key)
			switch {
			case e.said:
			case reason == "":
				w.none(e, "[%s] has no such key that this converter knows", s.name)
			default:
				if by[reason] == nil {
					order = append(order, reason)
				}
				by[reason] = append(by[reason], fmt.Sprintf("%s = %s (%s)", e.key, e.value, e.place()))
			}
		}
	}
	if len(order) > 0 {
		w.b.WriteByte('\n')
		w.say("Nothing has to be set for the rest:")
	}
	for _, reason := range order {
		w.comment("# - ", reason+": "+strings.Join(by[reason], ", "))
	}
}

// why returns why there is nothing to set for a key; "": that is not known.
func why(key string) string {
	for _, r := range reasons {
		if strings.Contains(" "+r.keys+" ", " "+key+" ") {
			return r.why
		}
	}
	return ""
}

var reasons = []struct{ keys, why string }{
	{
		"K2HTYPE K2HFILE K2HFULLMAP K2HINIT K2HMASKBIT K2HCMASKBIT K2HMAXELE K2HPAGESIZE",
		"there is no k2hash: what waits is in a queue on disk below state_dir, up to max_bytes of [queue]",
	},
	{"TRANSLINECNT TRANSTIMEUP BYTELIMIT BINTRANS", "it is what ftfuse does without it"},
	{"DTORTHREADCNT DTORCTP", "there is no transaction plugin: the mount sends itself"},
	{"K2HTPDTOR_BROADCAST K2HTPDTOR_CHMPXCONF K2HTPDTOR_EXCEPT_KEY", "there is no transaction plugin; what is not to be sent has a rule with transfer = false"},
	{"FILEVERSION DATE GROUP CHMPXIDTYPE CUK SELFCUK CUSTOM_ID_SEED", "each queue has a name of its own, made by chance"},
	{"MODE", "the role is the section: [mount], [relay], [receive]"},
	{"DELIVERMODE REPLICA NAME PORT ENDPOINTS", "who sends says where to, in [[mount.forward]] or [[relay.forward]]"},
	{"CTLPORT SELFCTLPORT CTLENDPOINTS FORWARD_PEERS REVERSE_PEERS", "there is one port, listen; `ftfuse status` asks through a socket in state_dir"},
	{
		"MAXCHMPX MAXMQSERVER MAXMQCLIENT MQPERATTACH MAXQPERSERVERMQ MAXQPERCLIENTMQ MAXMQPERCLIENT MAXHISTLOG MQRWTIMEOUT MQRETRYCNT MQACK SOCKTHREADCNT MQTHREADCNT MAXSOCKPOOL SOCKPOOLTIMEOUT",
		"there are no message queues between processes; max_connections limits peers, window the bytes in flight",
	},
	{"RWTIMEOUT RETRYCNT CONTIMEOUT", "a dead peer is noticed within seconds, and what it did not ack is sent again until it is there"},
	{"DOMERGE AUTOMERGE MERGETIMEOUT", "servers merge nothing: each batch has one place, and resends are recognised"},
	{"SSL SSL_VERIFY_PEER SSL_MIN_VER NSSDB_DIR CAPATH SERVER_CERT SERVER_PRIKEY SLAVE_CERT SLAVE_PRIKEY", "tls = { cert, key, ca } is this host's; TLS 1.3, and both ends show a certificate"},
}
