package k2hft

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Mountpoint is what fstab, or the operator, says of the mount.
type Mountpoint struct {
	Point           string // "": not known
	From            string // which line says the following; "": none
	AllowOther      bool
	Umask, UID, GID string
	Other           []string // options that are left
}

// FindMount returns the first line of fstab that mounts K2HFTFUSE with the configuration
// conf, and whether there is one.
func FindMount(name string, fstab []byte, conf string) (Mountpoint, bool) {
	n := 0
	for line := range strings.Lines(string(fstab)) {
		n++
		f := strings.Fields(line)
		if len(f) < 4 || strings.HasPrefix(f[0], "#") {
			continue
		}
		m := Mountpoint{Point: unoctal(f[1]), From: fmt.Sprintf("%s, line %d", name, n)}
		its := false
		for _, o := range strings.Split(f[3], ",") {
			key, v, _ := strings.Cut(o, "=")
			switch strings.ToLower(key) {
			case "conf":
				its = filepath.Clean(v) == filepath.Clean(conf)
			case "allow_other":
				m.AllowOther = true
			case "umask":
				m.Umask = v
			case "uid":
				m.UID = v
			case "gid":
				m.GID = v
			default:
				m.Other = append(m.Other, o)
			}
		}
		if its {
			return m, true
		}
	}
	return Mountpoint{}, false
}

// unoctal undoes the escapes of fstab(5).
func unoctal(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// below reports whether a path is the mount point, or below it.
func (m Mountpoint) below(p string) bool {
	point := m.Point
	return point != "" && (p == point || strings.HasPrefix(p, strings.TrimSuffix(point, "/")+"/"))
}
