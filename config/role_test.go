package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// good is a file whose roles start.
const good = `host = "h"
[mount]
[[mount.rule]]
path = "**"
[[mount.forward]]
name = "colo"
primary = ["b:7401"]
[receive]
[[receive.output]]
dir = "/data"
`

// with returns good with lines added behind the line that equals after.
func with(t *testing.T, after, lines string) string {
	t.Helper()
	text := strings.Replace(good, after+"\n", after+"\n"+lines+"\n", 1)
	if text == good {
		t.Fatalf("no line %q in the good file", after)
	}
	return text
}

func TestRoleAcceptsWhatItDoesAnyway(t *testing.T) {
	for name, text := range map[string]string{
		"good":             good,
		"any":              with(t, `name = "colo"`, `mode = "any"`),
		"no secondary":     with(t, `name = "colo"`, `secondary = []`),
		"failback default": with(t, `name = "colo"`, `failback_after = "30s"`),
		"window":           with(t, `name = "colo"`, `window = "1MiB"`),
		"no compression":   with(t, `host = "h"`, `queue.compression = "none"`),
		"attribution":      with(t, `path = "**"`, `attribution = "open"`),
		"write":            with(t, `path = "**"`, `attribution = "write"`),
		"own group":        with(t, `path = "**"`, `forward = ["colo"]`),
		"empty lists":      with(t, `path = "**"`, "allow = []\ndeny = []\ndefault = \"allow\"\nplugin = []"),
		"lists":            with(t, `path = "**"`, "allow = [ { match = \"x\" } ]\ndeny = [ { literal = \"y\" } ]\ndefault = \"deny\""),
		"max_record":       with(t, `path = "**"`, "mode = \"binary\"\nmax_record = \"64KiB\""),
		"max_line":         with(t, `path = "**"`, `max_line = "64MiB"`),
		"offline take":     with(t, `[mount]`, `offline = "take"`),
		"offline keep":     with(t, `[mount]`, `offline = "keep"`),
		"offline ignore":   with(t, `[mount]`, `offline = "ignore"`),
		"refuse":           with(t, `[mount]`, `overwrite = "refuse"`),
		"owner":            with(t, `[mount]`, "uid = 0\ngid = 100\numask = \"077\"\nallow_other = false"),
		"no plugin":        with(t, `dir = "/data"`, `plugin = []`),
		"plugin":           with(t, `path = "**"`, "plugin = [\"/bin/cat\"]\nplugin_output = \"/x/y\"\nplugin_ack = \"line\""),
		"output's plugin":  with(t, `dir = "/data"`, "plugin = [\"/bin/cat\"]\nplugin_ack = \"line\"\nplugin_timeout = \"1m\"\nfile = \"out.%T\""),
		"relay's plugin":   good + "[relay]\n[[relay.forward]]\nprimary = [\"c:1\"]\n[[relay.output]]\nplugin = [\"/bin/cat\"]\n",
		"http off":         with(t, `host = "h"`, `http = {}`),
		"http off twice":   with(t, `host = "h"`, `http.listen = ""`),
		"sync":             with(t, `host = "h"`, `queue.durability = "sync"`),
		"policies":         with(t, `host = "h"`, "[queue]\non_full = \"drop_oldest\"\nmax_age = \"7d\""),
		"hash":             with(t, `name = "colo"`, `mode = "hash"`),
		"broadcast":        with(t, `name = "colo"`, "mode = \"broadcast\"\nsecondary = [\"c:1\"]"),
		"failback":         with(t, `name = "colo"`, `failback_after = "1s"`),
		"two groups":       good + "[[mount.forward]]\nname = \"x\"\nprimary = [\"c:1\", \"srv+_ftfuse._tcp.example.org\"]\n",
		"keep_until":       with(t, `host = "h"`, "queue.keep_until = \"final\"\nqueue.final_timeout = \"5s\""),
		"compression":      with(t, `host = "h"`, `queue.compression = "zstd"`),
		"http":             with(t, `host = "h"`, `http.listen = "127.0.0.1:7480"`),
		"tls":              with(t, `host = "h"`, `tls = { cert = "/a", key = "/b", ca = "/c" }`),
		"allow":            with(t, `host = "h"`, `tls = { cert = "/a", key = "/b", ca = "/c" }`) + "[receive.allow]\n\"relay-*\" = [\"*\"]\n",
		"relay":            good + "[relay]\n[[relay.forward]]\nprimary = [\"c:1\"]\n[relay.queue]\nkeep_until = \"final\"\n",
		"relay's copy":     good + "[relay]\n[[relay.forward]]\nprimary = [\"c:1\"]\n[[relay.output]]\n",
		"all stays here":   "host = \"h\"\n[mount]\n[[mount.rule]]\npath = \"a/*\"\ntransfer = false\noutput = \"/o/%F\"\n[[mount.rule]]\npath = \"**\"\ntransfer = false\n",
		"another role's":   good + "[mount.queue]\ncompression = \"none\"\n",
	} {
		c := parse(t, text)
		for _, r := range c.Roles() {
			if err := c.CheckRole(r); err != nil {
				t.Errorf("%s: %s refused: %v", name, r, err)
			}
		}
	}
}

func TestRoleRefusesWhatItWouldIgnore(t *testing.T) {
	for name, tc := range map[string]struct {
		role Role
		text string
		want []want
	}{
		"no group":       {RoleMount, "host = \"h\"\n[mount]\n", []want{{2, ErrMissing, "mount", "nowhere", "[[mount.forward]]"}}},
		"a rule without": {RoleMount, "host = \"h\"\n[mount]\n[[mount.rule]]\npath = \"**\"\noutput = \"/o/%F\"\n", []want{{3, ErrMissing, "mount.rule", "nowhere", "transfer = false"}}},
		"no last rule":   {RoleMount, "host = \"h\"\n[mount]\n[[mount.rule]]\npath = \"a/*\"\ntransfer = false\n", []want{{2, ErrMissing, "mount", "no rule matches", "[[mount.forward]]"}}},
		"receiver's own": {RoleReceive, good + "[receive.queue]\ncompression = \"zstd\"\n", []want{{12, ErrUnsupported, "receive.queue.compression", "no effect", "[mount.queue]"}}},
		"last node":      {RoleReceive, good + "[receive.queue]\nkeep_until = \"final\"\n", []want{{12, ErrUnsupported, "receive.queue.keep_until", "no effect", "[relay.queue]"}}},
		"relay":          {RoleRelay, good + "[relay]\n", []want{{11, ErrMissing, "relay", "nowhere", "[[relay.forward]]"}}},
		"absent":         {RoleRelay, good, []want{{1, ErrMissing, "", "no [relay]", "add [relay]"}}},
	} {
		t.Run(name, func(t *testing.T) {
			err := parse(t, tc.text).CheckRole(tc.role)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("CheckRole returned %v for:\n%s", err, tc.text)
			}
			checkProblems(t, e, tc.want)
		})
	}
}

// What one role would ignore is no concern of the others.
func TestRoleStartsBesideOneThatCannot(t *testing.T) {
	c := parse(t, "host = \"h\"\n[mount]\n[receive]\n[relay]\n")
	if err := c.CheckRole(RoleReceive); err != nil {
		t.Error(err)
	}
	if c.CheckRole(RoleMount) == nil || c.CheckRole(RoleRelay) == nil {
		t.Error("mount or relay accepted")
	}
}

func TestNotesSayWhatIsDoneInstead(t *testing.T) {
	c := parse(t, with(t, `path = "**"`, ""))
	notes := strings.Join(c.Notes(RoleMount), "\n")
	if !strings.Contains(notes, "no tls") {
		t.Errorf("the notes say nothing of tls:\n%s", notes)
	}
	c = parse(t, with(t, `[mount]`, `offline = "ignore"`))
	if notes := c.Notes(RoleMount); len(notes) != 1 || !strings.Contains(notes[0], "no tls") {
		t.Errorf("got %q, want only that there is no tls", notes)
	}
	for _, path := range []string{"**", "a"} { // everything has gone to "**"
		c = parse(t, good+"[[mount.rule]]\npath = \"b\"\n[[mount.rule]]\npath = \""+path+"\"\n")
		if notes := strings.Join(c.Notes(RoleMount), "\n"); strings.Count(notes, "no file comes to it") != 2 || !strings.Contains(notes, fmt.Sprintf("rule %q of line", path)) {
			t.Errorf("the notes say nothing of rules that are not reached:\n%s", notes)
		}
	}
	c = parse(t, with(t, `path = "**"`, `allow = [ { match = "x" } ]`))
	if notes := strings.Join(c.Notes(RoleMount), "\n"); !strings.Contains(notes, "its allow changes nothing") {
		t.Errorf("the notes say nothing of an allow without default = deny:\n%s", notes)
	}
	for _, lines := range []string{`allow = [ { match = "x", replace = "y" } ]`, "allow = [ { match = \"x\" } ]\ndefault = \"deny\""} {
		if notes := strings.Join(parse(t, with(t, `path = "**"`, lines)).Notes(RoleMount), "\n"); strings.Contains(notes, "allow") {
			t.Errorf("%s: %s", lines, notes)
		}
	}
	c = parse(t, with(t, `host = "h"`, `tls = { cert = "/a", key = "/b", ca = "/c" }`))
	if notes := strings.Join(c.Notes(RoleReceive), "\n"); !strings.Contains(notes, "no allow") || strings.Contains(notes, "no tls") {
		t.Errorf("the notes of a receiver with tls and without allow are:\n%s", notes)
	}
	if notes := strings.Join(c.Notes(RoleMount), "\n"); strings.Contains(notes, "allow") {
		t.Errorf("a mount lets nobody in, but its notes are:\n%s", notes)
	}
	c = parse(t, with(t, `dir = "/data"`, `format = "%H"`))
	if notes := strings.Join(c.Notes(RoleReceive), "\n"); !strings.Contains(notes, "%L") {
		t.Errorf("the notes say nothing of a format without the data:\n%s", notes)
	}
}

func TestBucketsAreAsManyAsTheGroupsHaveUseFor(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want int
	}{
		"one destination": {good, 1},
		"secondary":       {with(t, `name = "colo"`, `secondary = ["c:1"]`), 1},
		"several":         {strings.Replace(good, `["b:7401"]`, `["b:7401", "c:1"]`, 1), 4},
		"a service":       {strings.Replace(good, `["b:7401"]`, `["srv+_ftfuse._tcp.example.org"]`, 1), 4},
		"broadcast":       {strings.Replace(with(t, `name = "colo"`, `mode = "broadcast"`), `["b:7401"]`, `["b:7401", "c:1"]`, 1), 1},
		"hash":            {with(t, `name = "colo"`, `mode = "hash"`), 16},
		"said":            {with(t, `[mount]`, `buckets = 3`), 3},
	} {
		if got := parse(t, tc.text).Mount.BucketCount(); got != tc.want {
			t.Errorf("%s: %d buckets, want %d", name, got, tc.want)
		}
	}
}

func TestRoleSectionsOverrideSharedOnes(t *testing.T) {
	c := parse(t, `host = "h"
http.listen = "127.0.0.1:80"
[receive.queue]
on_full = "error"
[queue]
max_bytes = "1GiB"
commit_every = "7ms"
[mount.queue]
max_bytes = "2GiB"
[mount.http]
listen = ""
[relay]
[receive]
`)
	type got struct {
		max  Size
		full FullPolicy
		http string
	}
	for role, want := range map[Role]got{
		RoleMount:   {2 * GiB, FullBlock, ""},
		RoleRelay:   {GiB, FullBlock, "127.0.0.1:80"},
		RoleReceive: {GiB, FullError, "127.0.0.1:80"},
	} {
		q := c.QueueFor(role)
		if g := (got{q.MaxBytes, q.OnFull, c.HTTPFor(role).Listen}); g != want || q.CommitEvery != 7*time.Millisecond {
			t.Errorf("%s has %+v and %v, want %+v and 7ms", role, g, q.CommitEvery, want)
		}
	}
	if c.QueueDir(RoleMount) != "/var/lib/ftfuse/mount/queue" || c.DeadDir(RoleReceive) != "/var/lib/ftfuse/receive/dead" {
		t.Errorf("directories are %s and %s", c.QueueDir(RoleMount), c.DeadDir(RoleReceive))
	}
}

// A Config that a program made by hand has no lines, and CheckRole no panic.
func TestCheckRoleOfAConfigThatWasNotParsed(t *testing.T) {
	c := &Config{Mount: &Mount{Offline: OfflineKeep, Queue: DefaultQueue()}}
	err := c.CheckRole(RoleMount)
	if !errors.Is(err, ErrMissing) {
		t.Errorf("got %v", err)
	}
}
