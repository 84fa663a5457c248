// Package mountinfo reads the kernel's list of mounts (proc_pid_mountinfo(5)). It asks no
// file system anything, so that one that hangs stops nobody.
package mountinfo

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Mount is one mounted file system.
type Mount struct {
	Parent uint64 // the id of the mount that it is mounted in
	Dev    string // MAJOR:MINOR
	Type   string // "ext4", "fuse.ftfuse"
	Source string // "/dev/sda1", or what the file system was called with
}

// On returns what this process sees mounted on the directory point, the topmost last.
func On(point string) ([]Mount, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mounts: %w", err)
	}
	return on(string(text), point), nil
}

func on(text, point string) []Mount {
	var all []Mount
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if ok && len(fields) >= 5 && len(rest) >= 2 && unescape(fields[4]) == point {
			parent, _ := strconv.ParseUint(fields[1], 10, 64) // the kernel writes a number
			all = append(all, Mount{Parent: parent, Dev: fields[2], Type: rest[0], Source: unescape(rest[1])})
		}
	}
	return all
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
