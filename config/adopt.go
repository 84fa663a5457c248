package config

import (
	"fmt"
	"reflect"
	"strings"
	"unicode"
)

// Adopted is what a running role makes of its file when it is read again.
type Adopted struct {
	// Config is the new one, but for the keys that a running role cannot change: they have
	// the values that are in force.
	Config  *Config
	Changed []string // the keys, dotted, that change now; a list of tables is one key
	Restart []string // for each key that waits for a restart: which, what stays, what is written where
}

// live names what a running role changes when its file is read again; all other keys need
// a restart. A * stands for the role.
var live = map[string]bool{
	"log.level": true, "shutdown_timeout": true,
	"*.queue.commit_every": true, "*.queue.commit_bytes": true, "*.queue.max_bytes": true,
	"*.queue.on_full": true, "*.queue.max_age": true,
	"*.queue.keep_until": true, "*.queue.final_timeout": true,
	"mount.rule": true, "mount.output": true, "*.forward": true,
	"*.allow": true, "relay.output": true, "receive.output": true,
}

// Adopt returns what becomes of next in the running role r, which uses c. Neither is
// written to.
func (c *Config) Adopt(next *Config, r Role) Adopted {
	merged := *next
	a := &adoption{Adopted: Adopted{Config: &merged}, role: string(r), next: next}
	cur, out := reflect.ValueOf(c).Elem(), reflect.ValueOf(&merged).Elem()
	for i := range cur.NumField() {
		f := cur.Type().Field(i)
		switch f.Name {
		case "File", "Queue", "HTTP", "pos": // the defaults of the roles, who have them with their own
		case "Mount", "Relay", "Receive":
			if key := keyName(f.Name); key == a.role {
				own := reflect.New(f.Type.Elem())
				own.Elem().Set(out.Field(i).Elem())
				out.Field(i).Set(own)
				a.walk(key, cur.Field(i).Elem(), own.Elem())
			}
		default:
			a.field(keyName(f.Name), cur.Field(i), out.Field(i))
		}
	}
	return a.Adopted
}

// adoption is an Adopt that is under way.
type adoption struct {
	Adopted
	role string
	next *Config
}

func (a *adoption) walk(path string, cur, out reflect.Value) {
	for i := range cur.NumField() {
		switch f := cur.Type().Field(i); {
		case !f.IsExported():
		case f.Anonymous:
			a.walk(path, cur.Field(i), out.Field(i))
		default:
			a.field(path+"."+keyName(f.Name), cur.Field(i), out.Field(i))
		}
	}
}

// field decides about the key at path, whose value in force is cur; out is the new one.
func (a *adoption) field(path string, cur, out reflect.Value) {
	if reflect.DeepEqual(cur.Interface(), out.Interface()) {
		return
	}
	general := path
	if rest, ok := strings.CutPrefix(path, a.role+"."); ok {
		general = "*." + rest
	}
	switch {
	case live[path], live[general]:
		a.Changed = append(a.Changed, path)
	case cur.Kind() == reflect.Struct:
		a.walk(path, cur, out)
	default:
		a.Restart = append(a.Restart, fmt.Sprintf("%s: %s stays in force; %s %s",
			path, shown(cur), a.where(path), shown(out)))
		out.Set(cur)
	}
}

// where says where the new value of the key at path stands, which follows.
func (a *adoption) where(path string) string {
	_, shared, _ := strings.Cut(path, ".") // [queue] and http are defaults of the roles'
	for _, p := range []string{path, shared} {
		if line, ok := a.next.pos[p]; ok {
			return fmt.Sprintf("line %d says", line)
		}
	}
	return "the default is"
}

// shown is v as it could stand in the file.
func shown(v reflect.Value) string {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return "nothing"
		}
		v = v.Elem()
	}
	if v.Kind() == reflect.String {
		return fmt.Sprintf("%q", v.String())
	}
	return fmt.Sprint(v.Interface())
}

// keyName is the key of a field: its words in small letters. A list is named by one of it.
func keyName(field string) string {
	switch field {
	case "Rules", "Forwards", "Outputs":
		field = strings.TrimSuffix(field, "s")
	}
	var b strings.Builder
	runes := []rune(field)
	for i, c := range runes {
		if i > 0 && unicode.IsUpper(c) && (unicode.IsLower(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}
