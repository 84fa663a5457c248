package template

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// zoneDirs is where time zones are looked up by name (zoneinfo(5)).
var zoneDirs = []string{"/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo"}

// maxZone bounds what is read as a time zone; the largest in use has under 4 KiB.
const maxZone = 64 << 10

// Zone is a time zone together with the bytes it was made from, so that a redo after a
// change of TZ or of the zone files shows a time as it was first written.
type Zone struct {
	Name string
	Data []byte // TZif, RFC 8536; empty for UTC
}

// LocalZone returns the zone of this host as TZ, else /etc/localtime, names it; UTC when
// there is none, as the C library and Go do.
func LocalZone() (Zone, error) {
	name, set := os.LookupEnv("TZ")
	if len(name) > 0 && name[0] == ':' {
		name = name[1:]
	}
	var candidates []string
	switch {
	case !set:
		name, candidates = "Local", []string{"/etc/localtime"}
	case name == "" || name == "UTC":
		return Zone{Name: "UTC"}, nil
	case filepath.IsAbs(name):
		candidates = []string{name}
	default:
		for _, dir := range zoneDirs {
			candidates = append(candidates, filepath.Join(dir, name))
		}
	}
	for _, path := range candidates {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Zone{}, fmt.Errorf("read time zone %q: %w", path, err)
		}
		z := Zone{Name: name, Data: data}
		if _, err := z.Location(); err != nil {
			return Zone{}, fmt.Errorf("read time zone %q (set TZ to a zone of %s, or TZ=UTC): %w", path, zoneDirs[0], err)
		}
		return z, nil
	}
	return Zone{Name: "UTC"}, nil
}

// Location returns the zone in Go's form.
func (z Zone) Location() (*time.Location, error) {
	if len(z.Data) == 0 {
		return time.UTC, nil
	}
	if len(z.Data) > maxZone {
		return nil, fmt.Errorf("time zone %s of %d bytes, want at most %d", z.Name, len(z.Data), maxZone)
	}
	l, err := time.LoadLocationFromTZData(z.Name, z.Data)
	if err != nil {
		return nil, fmt.Errorf("parse time zone %s: %w", z.Name, err)
	}
	return l, nil
}
