package config

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// base is a file with every role, to which lines are added.
const base = `state_dir = "/var/lib/ftfuse"
host = "h"
[mount]
point = "/mnt/ftfuse"
[[mount.rule]]
path = "a/**"
[[mount.forward]]
name = "colo"
primary = ["relay:7400"]
[relay]
listen = ":7400"
[[relay.forward]]
primary = ["agg:7401"]
[receive]
listen = ":7401"
`

func parsed(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("f.toml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestWhatARunningRoleCannotChangeIsNamed with its line, and keeps its value; the rest is new.
func TestWhatARunningRoleCannotChangeIsNamed(t *testing.T) {
	for _, c := range []struct {
		role             Role
		old, new         string
		changed, restart string
	}{
		{RoleMount, "", "", "", ""},
		{RoleMount, "/mnt/ftfuse", "/mnt/other", "", `mount.point: "/mnt/ftfuse" stays in force; line 4 says "/mnt/other"`},
		{RoleReceive, "/mnt/ftfuse", "/mnt/other", "", ""},
		{RoleMount, "/var/lib/ftfuse", "/var/lib/f2", "", `state_dir: "/var/lib/ftfuse" stays in force; line 1 says "/var/lib/f2"`},
		{RoleRelay, `":7400"`, `":7402"`, "", `relay.listen: ":7400" stays in force; line 11 says ":7402"`},
		{RoleReceive, `listen = ":7401"`, "listen = \":7401\"\nqueue.max_bytes = \"1GiB\"", "receive.queue.max_bytes", ""},
		{RoleReceive, "[mount]", "[queue]\ndurability = \"sync\"\non_full = \"error\"\n[mount]", "receive.queue.on_full", `receive.queue.durability: "journal" stays in force; line 4 says "sync"`},
		{RoleReceive, `host = "h"`, "host = \"h\"\nlog.level = \"debug\"\nlog.format = \"json\"", "log.level", `log.format: "text" stays in force; line 4 says "json"`},
		{RoleReceive, `host = "h"`, "host = \"h\"\nhttp.listen = \"127.0.0.1:1\"", "", `receive.http.listen: "" stays in force; line 3 says "127.0.0.1:1"`},
		{RoleMount, "[mount]", "[mount]\nuid = 5", "", `mount.uid: nothing stays in force; line 4 says 5`},
		{RoleReceive, `listen = ":7401"`, "listen = \":7401\"\n[[receive.output]]\ndir = \"/data\"", "receive.output", ""},
		{RoleReceive, "[receive]", "[receive]\nmax_connections = 7", "", `receive.max_connections: 1024 stays in force; line 15 says 7`},
	} {
		was := parsed(t, base)
		a := was.Adopt(parsed(t, strings.Replace(base, c.old, c.new, 1)), c.role)
		if got := strings.Join(a.Changed, " "); got != c.changed {
			t.Errorf("%s, %q: changed are %q, want %q", c.role, c.new, got, c.changed)
		}
		if got := strings.Join(a.Restart, "\n"); got != c.restart {
			t.Errorf("%s, %q: waiting are\n%s\nwant\n%s", c.role, c.new, got, c.restart)
		}
		if again := was.Adopt(a.Config, c.role); len(again.Restart) > 0 || !slices.Equal(again.Changed, a.Changed) {
			t.Errorf("%s, %q: what was adopted still waits: %q", c.role, c.new, again.Restart)
		}
	}
	if a := parsed(t, base).Adopt(parsed(t, strings.Replace(base, "uid", "", 1)), RoleMount); len(a.Changed) > 0 {
		t.Errorf("two readings of one file differ in %q", a.Changed)
	}
}

// TestAdoptNamesKeysAsTheFileDoes: each key that it can name is one that a file may have.
func TestAdoptNamesKeysAsTheFileDoes(t *testing.T) {
	for field, want := range map[string]string{"MaxConnectionsPerAddress": "max_connections_per_address", "HTTP": "http", "UID": "uid", "TLS": "tls", "CA": "ca", "Rules": "rule", "StateDir": "state_dir"} {
		if got := keyName(field); got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	for key := range live {
		name, _ := strings.CutPrefix(key, "*.")
		for _, role := range []string{"relay.", "receive.", "mount.", ""} {
			if strings.HasPrefix(key, "*.") {
				name = role + strings.TrimPrefix(key, "*.")
			}
			if hasKey(reflect.TypeFor[Config](), strings.Split(name, ".")) {
				name = ""
				break
			}
		}
		if name != "" {
			t.Errorf("no key is called %s", key)
		}
	}
}

func hasKey(typ reflect.Type, names []string) bool {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if len(names) == 0 {
		return true
	}
	if typ.Kind() != reflect.Struct {
		return false
	}
	for _, f := range reflect.VisibleFields(typ) {
		if f.IsExported() && keyName(f.Name) == names[0] && hasKey(f.Type, names[1:]) {
			return true
		}
	}
	return false
}
