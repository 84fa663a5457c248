package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// table reads the keys of one TOML table. A method that reads a key leaves its
// destination alone when the key is not there, and notes a problem and leaves it
// alone when the value is not what it should be. done notes the keys that nobody
// asked for.
type table struct {
	ps    *problems
	path  string
	m     map[string]any
	known []string
}

// get marks key as known and returns its value.
func (t *table) get(key string) (any, bool) {
	t.known = append(t.known, key)
	v, ok := t.m[key]
	return v, ok
}

func (t *table) key(key string) string { return join(t.path, key) }

// wrongType notes that the value v of key is of another type; want says of which,
// example is a value that would do.
func (t *table) wrongType(path string, v any, want, example string) {
	t.ps.add(ErrType, path, "write "+lastName(path)+" = "+example, "%s is %s, not %s", plainKey(path), typeName(v), want)
}

func lastName(path string) string {
	path = plainKey(path)
	return path[strings.LastIndexByte(path, '.')+1:]
}

func typeName(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case bool:
		return "a boolean"
	case time.Time:
		return "a date"
	case map[string]any:
		return "a table"
	case []any, []map[string]any:
		return "an array"
	}
	return fmt.Sprintf("a %T", v)
}

func (t *table) str(key, example string, dst *string) bool {
	v, ok := t.get(key)
	if !ok {
		return false
	}
	s, ok := v.(string)
	if !ok {
		t.wrongType(t.key(key), v, "a string", fmt.Sprintf("%q", example))
		return false
	}
	*dst = s
	return true
}

// enum reads a key that takes one of values.
func enum[T ~string](t *table, key string, dst *T, values ...T) {
	v, ok := t.get(key)
	if !ok {
		return
	}
	s, ok := v.(string)
	if !ok {
		t.wrongType(t.key(key), v, "a string", fmt.Sprintf("%q", values[0]))
		return
	}
	if !slices.Contains(values, T(s)) {
		var all []string
		for _, one := range values {
			all = append(all, fmt.Sprintf("%q", one))
		}
		t.ps.add(ErrValue, t.key(key), "write "+strings.Join(all, " or "), "%s = %q is not one of its values", plainKey(t.key(key)), s)
		return
	}
	*dst = T(s)
}

func (t *table) boolean(key string, dst *bool) {
	v, ok := t.get(key)
	if !ok {
		return
	}
	b, ok := v.(bool)
	if !ok {
		t.wrongType(t.key(key), v, "true or false", "true")
		return
	}
	*dst = b
}

// integer reads a number from least to most.
func (t *table) integer(key string, least, most int64, dst *int64) bool {
	v, ok := t.get(key)
	if !ok {
		return false
	}
	n, ok := v.(int64)
	if !ok {
		t.wrongType(t.key(key), v, "an integer", fmt.Sprint(min(most, 1000)))
		return false
	}
	if n < least || n > most {
		t.ps.add(ErrValue, t.key(key), fmt.Sprintf("write a number from %d to %d", least, most), "%s = %d is out of range", plainKey(t.key(key)), n)
		return false
	}
	*dst = n
	return true
}

// count reads a number from least to most that fits an int.
func (t *table) count(key string, least, most int, dst *int) {
	var n int64
	if t.integer(key, int64(least), int64(most), &n) {
		*dst = int(n)
	}
}

// size reads a size from least to most; an integer is bytes.
func (t *table) size(key string, least, most Size, dst *Size) {
	v, ok := t.get(key)
	if !ok {
		return
	}
	path := t.key(key)
	var n Size
	switch v := v.(type) {
	case int64:
		n = Size(v)
	case string:
		var err error
		if n, err = ParseSize(v); err != nil {
			t.ps.add(ErrValue, path, sizeFix(v), "%s = %q is %v", plainKey(path), v, err)
			return
		}
	default:
		t.wrongType(path, v, "a size", fmt.Sprintf("%q", *dst))
		return
	}
	if n < least || n > most {
		t.ps.add(ErrValue, path, fmt.Sprintf("write a size from %s to %s", least, most), "%s = %v is out of range", plainKey(path), quoteString(v))
		return
	}
	*dst = n
}

// sizeFix says how a size that was not understood is written.
func sizeFix(text string) string {
	digits := strings.TrimRight(strings.TrimSpace(text), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return `write a whole number and one of B, KiB, MiB, GiB, TiB, such as "64MiB"`
	}
	unit := strings.ToUpper(strings.TrimSpace(text[len(digits):]))
	if unit != "" && strings.ContainsRune("KMGT", rune(unit[0])) {
		return fmt.Sprintf(`write "%s%ciB"`, digits, unit[0])
	}
	return fmt.Sprintf(`write "%sB" for bytes, or another of KiB, MiB, GiB, TiB`, digits)
}

func quoteString(v any) string {
	if s, ok := v.(string); ok {
		return fmt.Sprintf("%q", s)
	}
	return fmt.Sprint(v)
}

// duration reads a duration from least to most (0 most: no limit).
func (t *table) duration(key string, least, most time.Duration, dst *time.Duration) {
	v, ok := t.get(key)
	if !ok {
		return
	}
	path := t.key(key)
	var d time.Duration
	switch v := v.(type) {
	case string:
		var err error
		if d, err = ParseDuration(v); err != nil {
			t.ps.add(ErrValue, path, `write a number and a unit of ms, s, m, h or d, such as "30s"`, "%s = %q is %v", plainKey(path), v, err)
			return
		}
	case int64:
		if v != 0 {
			t.ps.add(ErrType, path, fmt.Sprintf(`write "%ds" or another unit`, v), "%s = %d has no unit", plainKey(path), v)
			return
		}
	default:
		t.wrongType(path, v, "a duration", fmt.Sprintf("%q", dst.String()))
		return
	}
	if d < least || most > 0 && d > most {
		fix := fmt.Sprintf("write %q or more", least)
		if most > 0 {
			fix = fmt.Sprintf("write a duration from %q to %q", least, most)
		}
		t.ps.add(ErrValue, path, fix, "%s = %v is out of range", plainKey(path), quoteString(v))
		return
	}
	*dst = d
}

// strings reads an array of strings.
func (t *table) strings(key, example string, dst *[]string) bool {
	v, ok := t.get(key)
	if !ok {
		return false
	}
	path := t.key(key)
	items, ok := v.([]any)
	if !ok {
		t.wrongType(path, v, "an array of strings", example)
		return false
	}
	out := make([]string, 0, len(items))
	for i, item := range items {
		s, ok := item.(string)
		if !ok {
			t.wrongType(element(path, i), item, "a string in an array of strings", example)
			return false
		}
		out = append(out, s)
	}
	*dst = out
	return true
}

// sub returns the table at key; nil when it is not there.
func (t *table) sub(key string) *table {
	v, ok := t.get(key)
	if !ok {
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		what := "write [" + plainKey(t.key(key)) + "] once, with its keys below"
		t.ps.add(ErrType, t.key(key), what, "%s is %s, not a table", plainKey(t.key(key)), typeName(v))
		return nil
	}
	return &table{ps: t.ps, path: t.key(key), m: m}
}

// subs returns the tables of the array at key.
func (t *table) subs(key string) []*table {
	v, ok := t.get(key)
	if !ok {
		return nil
	}
	path := t.key(key)
	fix := "write [[" + plainKey(path) + "]] above its keys, once for each"
	var items []any
	switch v := v.(type) {
	case []map[string]any:
		for _, m := range v {
			items = append(items, m)
		}
	case []any:
		items = v
	default:
		t.ps.add(ErrType, path, fix, "%s is %s, not an array of tables", plainKey(path), typeName(v))
		return nil
	}
	var all []*table
	for i, item := range items {
		m, ok := item.(map[string]any)
		if !ok {
			t.ps.add(ErrType, element(path, i), fix, "%s holds %s, not a table", plainKey(path), typeName(item))
			continue
		}
		all = append(all, &table{ps: t.ps, path: element(path, i), m: m})
	}
	return all
}

// done notes the keys of the table that nobody read.
func (t *table) done() {
	for _, key := range slices.Sorted(maps.Keys(t.m)) {
		if slices.Contains(t.known, key) {
			continue
		}
		t.ps.add(ErrUnknownKey, t.key(key), t.suggest(key), "unknown key %s", plainKey(t.key(key)))
	}
}

// suggest says what could have been meant by an unknown key.
func (t *table) suggest(key string) string {
	best, distance := "", 3
	for _, k := range t.known {
		if d := editDistance(strings.ToLower(key), k); d < distance && d < len(k) {
			best, distance = k, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	known := slices.Sorted(slices.Values(t.known))
	where := "the top level"
	if t.path != "" {
		where = "[" + plainKey(t.path) + "]"
	}
	return "remove it; " + where + " takes " + strings.Join(known, ", ")
}

// editDistance is the number of bytes to insert, delete or replace to make a of b.
func editDistance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
