package config

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"
)

// Limits of settings. They keep a typing error from becoming an outage; the doc says
// them too.
const (
	minMaxBytes    = MiB
	maxMaxBytes    = 1024 * TiB
	minCommitBytes = 4 * KiB
	maxCommitBytes = 64 * MiB
	minCommitEvery = 100 * time.Microsecond
	maxCommitEvery = 10 * time.Second
	minWindow      = 64 * KiB
	maxWindow      = 4 * GiB
	minMaxLine     = 1 * KiB
	maxMaxLine     = 64 * MiB
	minMaxRecord   = 1
	maxMaxRecord   = GiB
	maxReadback    = TiB
	maxShutdown    = time.Hour
	minHolder      = time.Second // but for 0, no holder
	maxHolder      = time.Hour
	minFinal       = time.Second
	maxFinal       = 7 * 24 * time.Hour
	maxBuckets     = 16
	minPlugin      = 100 * time.Millisecond // but for 0, none
	maxPlugin      = 24 * time.Hour
	maxConnections = 1 << 20
)

// decode fills c from the document; what it leaves alone keeps its default.
func (c *Config) decode(t *table) {
	if !t.str("host", "web-01", &c.Host) {
		c.Host, _ = os.Hostname() // an empty one is refused by validate
	}
	t.str("state_dir", c.StateDir, &c.StateDir)
	t.duration("shutdown_timeout", 0, maxShutdown, &c.ShutdownTimeout)
	if s := t.sub("log"); s != nil {
		enum(s, "level", &c.Log.Level, "debug", "info", "warn", "error")
		enum(s, "format", &c.Log.Format, "text", "json")
		s.done()
	}
	c.HTTP.decode(t.sub("http"))
	if s := t.sub("tls"); s != nil {
		s.str("cert", "/etc/ftfuse/cert.pem", &c.TLS.Cert)
		s.str("key", "/etc/ftfuse/key.pem", &c.TLS.Key)
		s.str("ca", "/etc/ftfuse/ca.pem", &c.TLS.CA)
		s.done()
	}
	c.Queue.decode(t.sub("queue"))
	// The roles come last: they start from the sections above.
	if s := t.sub("mount"); s != nil {
		c.Mount = defaultMount(c)
		c.Mount.decode(s)
	}
	if s := t.sub("relay"); s != nil {
		c.Relay = defaultRelay(c)
		c.Relay.decode(s)
	}
	if s := t.sub("receive"); s != nil {
		c.Receive = defaultReceive(c)
		c.Receive.decode(s)
	}
	t.done()
}

func (h *HTTP) decode(t *table) {
	if t == nil {
		return
	}
	t.str("listen", "127.0.0.1:7480", &h.Listen)
	t.done()
}

func (q *Queue) decode(t *table) {
	if t == nil {
		return
	}
	enum(t, "durability", &q.Durability, DurabilityJournal, DurabilitySync)
	t.duration("commit_every", minCommitEvery, maxCommitEvery, &q.CommitEvery)
	t.size("commit_bytes", minCommitBytes, maxCommitBytes, &q.CommitBytes)
	t.size("max_bytes", minMaxBytes, maxMaxBytes, &q.MaxBytes)
	enum(t, "on_full", &q.OnFull, FullBlock, FullError, FullDropOldest, FullDropNewest)
	t.duration("max_age", 0, 0, &q.MaxAge)
	enum(t, "compression", &q.Compression, CompressionNone, CompressionS2, CompressionZstd)
	enum(t, "keep_until", &q.KeepUntil, KeepUntilHop, KeepUntilFinal)
	t.duration("final_timeout", minFinal, maxFinal, &q.FinalTimeout)
	t.done()
}

func (m *Mount) decode(t *table) {
	t.str("point", m.Point, &m.Point)
	t.boolean("allow_other", &m.AllowOther)
	t.size("readback", 0, maxReadback, &m.Readback)
	enum(t, "offline", &m.Offline, OfflineTake, OfflineKeep, OfflineIgnore)
	enum(t, "overwrite", &m.Overwrite, OverwriteAppend, OverwriteRefuse)
	var umask string
	if t.str("umask", "022", &umask) {
		n, err := parseUmask(umask)
		if err != nil {
			t.ps.add(ErrValue, t.key("umask"), `write three octal digits, such as "022"`, "mount.umask = %q is not a mask of permission bits", umask)
		}
		m.Umask = n
	}
	t.duration("holder_timeout", 0, maxHolder, &m.HolderTimeout)
	m.UID = t.id("uid")
	m.GID = t.id("gid")
	t.count("buckets", 1, maxBuckets, &m.Buckets)
	for _, s := range t.subs("rule") {
		r := DefaultRule()
		r.key = s.path
		r.decode(s)
		m.Rules = append(m.Rules, r)
	}
	m.Forwards = decodeForwards(t)
	m.Outputs = decodeOutputs(t)
	m.HTTP.decode(t.sub("http"))
	m.Queue.decode(t.sub("queue"))
	t.done()
}

// id reads a numeric user or group id; -1 is not one.
func (t *table) id(key string) *uint32 {
	var n int64
	if !t.integer(key, 0, 1<<32-2, &n) {
		return nil
	}
	id := uint32(n)
	return &id
}

func parseUmask(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 8, 32)
	if err == nil && n > 0o777 {
		err = strconv.ErrRange
	}
	return uint32(n), err
}

func (r *Rule) decode(t *table) {
	t.str("path", "logs/**", &r.Path)
	t.boolean("transfer", &r.Transfer)
	t.strings("forward", `["colo"]`, &r.Forward)
	enum(t, "attribution", &r.Attribution, AttributionOpen, AttributionWrite)
	enum(t, "mode", &r.Mode, ModeLine, ModeBinary)
	t.size("max_line", minMaxLine, maxMaxLine, &r.MaxLine)
	t.size("max_record", minMaxRecord, maxMaxRecord, &r.MaxRecord)
	r.Attributes = decodeAttributes(t)
	enum(t, "default", &r.Default, VerdictAllow, VerdictDeny)
	r.Allow = decodeFilters(t, "allow", true)
	r.Deny = decodeFilters(t, "deny", false)
	t.str("output", "/var/log/copy/%F", &r.Output)
	t.strings("plugin", `["/usr/bin/grep", "--line-buffered", "x"]`, &r.Plugin)
	t.str("plugin_output", "/var/log/grep.out", &r.PluginOutput)
	decodePlugin(t, &r.PluginAck, &r.PluginTimeout)
	t.done()
}

func decodePlugin(t *table, ack *PluginAck, timeout *time.Duration) {
	enum(t, "plugin_ack", ack, PluginAckPipe, PluginAckLine)
	t.duration("plugin_timeout", 0, maxPlugin, timeout)
}

func decodeForwards(t *table) []Forward {
	var all []Forward
	for _, s := range t.subs("forward") {
		f := defaultForward()
		f.key = s.path
		s.str("name", "colo", &f.Name)
		enum(s, "mode", &f.Mode, ForwardAny, ForwardHash, ForwardBroadcast)
		s.strings("primary", `["relay-a:7400"]`, &f.Primary)
		s.strings("secondary", `["relay-c:7400"]`, &f.Secondary)
		s.size("window", minWindow, maxWindow, &f.Window)
		s.duration("failback_after", 0, 0, &f.FailbackAfter)
		s.done()
		all = append(all, f)
	}
	return all
}

func (r *Relay) decode(t *table) {
	t.str("listen", r.Listen, &r.Listen)
	r.Listener.decode(t)
	r.Forwards = decodeForwards(t)
	r.Outputs = decodeOutputs(t)
	r.HTTP.decode(t.sub("http"))
	r.Queue.decode(t.sub("queue"))
	t.done()
}

func (r *Receive) decode(t *table) {
	t.str("listen", r.Listen, &r.Listen)
	r.Listener.decode(t)
	r.Outputs = decodeOutputs(t)
	if len(r.Outputs) == 0 {
		r.Outputs = []Output{DefaultOutput()}
	}
	r.HTTP.decode(t.sub("http"))
	r.Queue.decode(t.sub("queue"))
	t.done()
}

func (l *Listener) decode(t *table) {
	if s := t.sub("allow"); s != nil {
		l.Allow = map[string][]string{}
		good := true
		for _, name := range slices.Sorted(maps.Keys(s.m)) {
			var hosts []string
			good = s.strings(name, `["web-*"]`, &hosts) && good
			l.Allow[name] = hosts
		}
		if !good {
			l.Allow = nil // refused already
		}
	}
	t.count("max_connections", 1, maxConnections, &l.MaxConnections)
	t.count("max_connections_per_address", 1, maxConnections, &l.MaxConnectionsPerAddress)
}

func decodeOutputs(t *table) []Output {
	var all []Output
	for _, s := range t.subs("output") {
		o := DefaultOutput()
		o.key = s.path
		if t.path == string(RoleMount) {
			s.str("name", "copies", &o.Name)
		}
		s.str("hosts", "*", &o.Hosts)
		s.str("path", "**", &o.Path)
		s.str("dir", o.Dir, &o.Dir)
		s.str("file", o.File, &o.File)
		s.str("format", o.Format, &o.Format)
		s.str("time", o.Time, &o.Time)
		s.strings("plugin", `["/usr/bin/grep", "--line-buffered", "x"]`, &o.Plugin)
		decodePlugin(s, &o.PluginAck, &o.PluginTimeout)
		if _, given := s.m["file"]; !given && len(o.Plugin) > 0 {
			o.File = ""
		}
		o.Files.decode(s)
		o.Rotate.decode(s.sub("rotate"))
		if len(o.Plugin) > 0 && o.Rotate != (Rotate{}) {
			t.ps.add(ErrConflict, s.key("rotate"), "remove it, and let logrotate do it: ftfuse notices", "%s.rotate beside a plugin: what the plugin prints is not rotated", plainKey(s.path))
		}
		s.done()
		all = append(all, o)
	}
	return all
}

// String names the rule as messages do.
func (r *Rule) String() string { return fmt.Sprintf("rule %q", r.Path) }
