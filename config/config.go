// Package config holds ftfuse's configuration: one TOML file per host, which may
// describe several roles (mount, relay, receive).
//
// [Load] and [Parse] return either a configuration in which every key is known,
// every value has its type and range, every default is filled in and no path
// overlaps the mount point, or an [*Error] that lists every problem found, each
// with the file, the line, what is wrong and what to write instead. What a role of
// this version would ignore is refused by [Config.CheckRole], not by Parse: a
// host's file may describe roles and features that another version serves.
//
// A Config is not written to after Parse returned it and may be shared between
// goroutines. The package is a leaf: it starts nothing, and reads no file but the one
// it is told to load (it resolves symbolic links on the way to the configured paths,
// never below the mount point, whose daemon may be dead).
package config

import (
	"regexp"
	"slices"
	"time"

	"ftfuse/internal/dest"
)

// Role names one of the three things that the binary can be.
type Role string

// The roles. Each keeps its state in <state_dir>/<role>/.
const (
	RoleMount   Role = "mount"
	RoleRelay   Role = "relay"
	RoleReceive Role = "receive"
)

// Roles lists every role in the order in which a record passes them.
func Roles() []Role { return []Role{RoleMount, RoleRelay, RoleReceive} }

// Config is one host's file with every default filled in.
type Config struct {
	File            string        // the name it was read from, as messages show it
	Host            string        // host: the name in records; the machine's own when not given
	StateDir        string        // state_dir: absolute and clean; see RoleDir
	ShutdownTimeout time.Duration // shutdown_timeout: how long a stop may drain
	Log             Log
	HTTP            HTTP  // the default of every role; use HTTPFor
	TLS             TLS   // zero: plain TCP
	Queue           Queue // the default of every role; use QueueFor

	Mount   *Mount   // nil: the file has no [mount]
	Relay   *Relay   // nil: the file has no [relay]
	Receive *Receive // nil: the file has no [receive]

	pos positions // line of each key; nil in a Config that was not parsed
}

// Log says how the process logs to stderr.
type Log struct {
	Level  string // debug, info, warn or error
	Format string // text or json
}

// HTTP is the server for /metrics, /healthz, /readyz and the status page.
type HTTP struct {
	Listen string // host:port; "" is off
}

// TLS names PEM files. Either all are empty or all are set: each end shows a certificate
// of a CA that the other one knows.
type TLS struct {
	Cert string // this host's, with what stands between it and the CA behind it
	Key  string // its private key
	CA   string // who may sign the peers' certificates
}

// Enabled reports whether connections are encrypted.
func (t TLS) Enabled() bool { return t != TLS{} }

// Durability is what a write(2) that returned has survived.
type Durability string

// Values of [Queue].Durability.
const (
	DurabilityJournal Durability = "journal" // write(2) survives kill -9, fsync(2) power loss
	DurabilitySync    Durability = "sync"    // write(2) survives power loss
)

// FullPolicy is what happens to new data when a queue is at its limit.
type FullPolicy string

// Values of [Queue].OnFull.
const (
	FullBlock      FullPolicy = "block"       // the writer waits
	FullError      FullPolicy = "error"       // the writer gets ENOSPC
	FullDropOldest FullPolicy = "drop_oldest" // the oldest batches go, counted
	FullDropNewest FullPolicy = "drop_newest" // the new batch goes, counted
)

// Compression names the codec with which a mount seals batches.
type Compression string

// Values of [Queue].Compression.
const (
	CompressionNone Compression = "none"
	CompressionS2   Compression = "s2"
	CompressionZstd Compression = "zstd"
)

// KeepUntil is when a sender lets a batch go.
type KeepUntil string

// Values of [Queue].KeepUntil.
const (
	KeepUntilHop   KeepUntil = "hop"   // the next node has it on its disk
	KeepUntilFinal KeepUntil = "final" // the last node has it in its output
)

// Queue configures one role's durable queue. Sizes are bytes.
type Queue struct {
	Durability  Durability
	CommitEvery time.Duration // a group commit at least this often under load
	CommitBytes Size          // and at the latest after this much
	MaxBytes    Size          // the limit at which OnFull decides
	OnFull      FullPolicy
	MaxAge      time.Duration // older batches expire; 0 is never
	Compression Compression

	KeepUntil    KeepUntil     // of a mount and a relay; a receiver has nobody to wait for
	FinalTimeout time.Duration // with KeepUntilFinal: what is not final for so long is sent again
}

// Offline is what becomes of files that were written below the mount point while
// nothing was mounted there.
type Offline string

// Values of [Mount].Offline.
const (
	OfflineTake   Offline = "take"   // they are handed to the queue, and removed
	OfflineKeep   Offline = "keep"   // they are, and stay as they are
	OfflineIgnore Offline = "ignore" // they stay where they are, hidden by the mount
)

// Overwrite is what a write over bytes that were captured already does.
type Overwrite string

// Values of [Mount].Overwrite.
const (
	OverwriteAppend Overwrite = "append" // captured as it comes, counted
	OverwriteRefuse Overwrite = "refuse" // EPERM
)

// Mount is the role that captures.
type Mount struct {
	Point      string // absolute and clean
	AllowOther bool
	Readback   Size // how much of a file's end can be read back; 0 is nothing
	Offline    Offline
	Overwrite  Overwrite
	Umask      uint32  // permission bits that new files and directories never get
	UID        *uint32 // owner of new files and directories; nil: who makes them
	GID        *uint32 // group of new files and directories; nil: who makes them

	// HolderTimeout is how long no worker may serve before the holder drops the
	// connection; 0 is no holder.
	HolderTimeout time.Duration

	// Buckets into which the paths of this host are spread, 1 to 16, so that their batches
	// can go different ways; 0: as many as the groups here have use for. See BucketCount.
	Buckets int

	// Rules in the order of the file; the first whose Path matches wins. A file that
	// none matches is treated as DefaultRule says: it is transferred, line by line.
	Rules    []Rule
	Forwards []Forward // [[mount.forward]]
	Outputs  []Output  // [[mount.output]], which rules name; see RuleOutputs

	HTTP  HTTP  // merged with the top level; see HTTPFor
	Queue Queue // merged with the top level; see QueueFor
}

// Attribution is how exactly a record names its writer.
type Attribution string

// Values of [Rule].Attribution.
const (
	AttributionOpen  Attribution = "open"  // pid of the newest opener, time of capture; where the kernel cannot, as below
	AttributionWrite Attribution = "write" // thread and time of every write(2)
)

// RecordMode is how captured bytes are cut into records.
type RecordMode string

// Values of [Rule].Mode.
const (
	ModeLine   RecordMode = "line"   // whole lines
	ModeBinary RecordMode = "binary" // as written; a record ends at flush
)

// Attribute is something that records tell of their writer beside what they always do.
type Attribute string

// Values of [Rule].Attributes.
const (
	AttributeExe    Attribute = "exe"    // path of the program
	AttributeCgroup Attribute = "cgroup" // control group: of a container, a unit
)

// Verdict is what a filter does with a line that no list matches.
type Verdict string

// Values of [Rule].Default.
const (
	VerdictAllow Verdict = "allow"
	VerdictDeny  Verdict = "deny"
)

// Rule says what happens to the files whose path matches Path.
type Rule struct {
	Path        string // doublestar glob below the mount point, no leading slash
	Transfer    bool
	Forward     []string // names of groups; nil: all
	Attribution Attribution
	Mode        RecordMode
	MaxLine     Size // a longer line travels in pieces
	MaxRecord   Size // with ModeBinary: a record ends after so many bytes
	Attributes  []Attribute
	Default     Verdict
	Allow       []Filter
	Deny        []Filter

	Output        string   // template of an absolute path, or name of one of Mount.Outputs; "": no local copy
	Plugin        []string // command and arguments; nil: none
	PluginOutput  string   // absolute path; "": none
	PluginAck     PluginAck
	PluginTimeout time.Duration // 0: none

	key string // where it stands in the file, for messages
}

// PluginAck says when a plugin has taken what it was given.
type PluginAck string

// Values of PluginAck.
const (
	PluginAckPipe PluginAck = "pipe" // it has read it
	PluginAckLine PluginAck = "line" // it said so, "ok N" on descriptor 3
)

// Filter is one entry of a rule's allow or deny.
type Filter struct {
	Match   *regexp.Regexp // nil: Literal it is
	Literal string
	Replace *string // nil: the line stays as it is
}

// ForwardMode is how the destinations of a group share its batches.
type ForwardMode string

// Values of [Forward].Mode.
const (
	ForwardAny       ForwardMode = "any"
	ForwardHash      ForwardMode = "hash" // by host and path
	ForwardBroadcast ForwardMode = "broadcast"
)

// Forward is one group of destinations.
type Forward struct {
	Name          string // unique; "default" for a single group without a name
	Mode          ForwardMode
	Primary       []string // as dest.Parse reads them, at least one
	Secondary     []string // used while no primary is healthy; with broadcast each for the primary at its position
	Window        Size     // bytes in flight per destination
	FailbackAfter time.Duration

	key string
}

// Listener says whom a relay or a receiver lets in.
type Listener struct {
	// Allow maps the name in a peer's certificate to the hosts that it may speak for, both
	// globs. nil: it may speak for the host of its own name only.
	Allow map[string][]string

	MaxConnections           int // in all
	MaxConnectionsPerAddress int // of one IP address
}

// Relay is the role that passes on.
type Relay struct {
	Listen string // host:port
	Listener
	Forwards []Forward
	Outputs  []Output // copies on the way; may be empty

	HTTP  HTTP
	Queue Queue
}

// Receive is the role that writes the files at the end.
type Receive struct {
	Listen string // host:port
	Listener
	Outputs []Output // never empty: none given is one with all defaults

	HTTP  HTTP
	Queue Queue
}

// Output says which records go to which file, and in what form. File and Format
// are templates (docs/configuration.md lists the directives).
type Output struct {
	Name   string // of one of a mount's; else ""
	Hosts  string // glob over the record's host
	Path   string // doublestar glob over the record's path
	Dir    string // absolute and clean; no file is ever opened above it
	File   string
	Format string // "%L" is byte-exact
	Time   string // strftime, with %- for nanoseconds

	// Plugin is a command and its arguments; nil: none. With it the formatted bytes go to its
	// standard input, and its standard output to File, which then holds times only; "": to
	// nothing.
	Plugin        []string
	PluginAck     PluginAck
	PluginTimeout time.Duration // 0: none

	Rotate Rotate
	Files  // who owns what it makes

	key string
}

// Configured reports whether the file describes the role.
func (c *Config) Configured(r Role) bool {
	switch r {
	case RoleMount:
		return c.Mount != nil
	case RoleRelay:
		return c.Relay != nil
	case RoleReceive:
		return c.Receive != nil
	}
	return false
}

// QueueFor returns the role's queue settings: [<role>.queue] over [queue] over the
// defaults.
func (c *Config) QueueFor(r Role) Queue {
	switch {
	case r == RoleMount && c.Mount != nil:
		return c.Mount.Queue
	case r == RoleRelay && c.Relay != nil:
		return c.Relay.Queue
	case r == RoleReceive && c.Receive != nil:
		return c.Receive.Queue
	}
	return c.Queue
}

// HTTPFor returns the role's HTTP server: [<role>.http] over http.
func (c *Config) HTTPFor(r Role) HTTP {
	switch {
	case r == RoleMount && c.Mount != nil:
		return c.Mount.HTTP
	case r == RoleRelay && c.Relay != nil:
		return c.Relay.HTTP
	case r == RoleReceive && c.Receive != nil:
		return c.Receive.HTTP
	}
	return c.HTTP
}

// BucketCount returns into how many buckets the mount spreads its paths: Buckets, or 16 if
// one of its groups goes by hash, 4 if one goes to any of several primaries, else 1.
func (m *Mount) BucketCount() int {
	if m.Buckets != 0 {
		return m.Buckets
	}
	n := 1
	for i := range m.Forwards {
		switch f := &m.Forwards[i]; {
		case f.Mode == ForwardHash:
			return maxBuckets
		case f.Mode == ForwardAny && f.several():
			n = 4
		}
	}
	return n
}

// several reports whether the group may have more than one primary destination.
func (f *Forward) several() bool {
	return len(f.Primary) > 1 || slices.ContainsFunc(f.Primary, func(addr string) bool {
		d, err := dest.Parse(addr)
		return err == nil && d.IsService()
	})
}

// Roles lists the roles that the file describes.
func (c *Config) Roles() []Role {
	var all []Role
	for _, r := range Roles() {
		if c.Configured(r) {
			all = append(all, r)
		}
	}
	return all
}
