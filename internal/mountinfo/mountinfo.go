// Package mountinfo reads the kernel's list of mounts (proc_pid_mountinfo(5)). It asks no
// file system anything, so that one that hangs stops nobody.
package mountinfo

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
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
	return read(func(at string, _ Mount) bool { return at == point })
}

// Of returns where this process sees the file system of a device mounted.
func Of(dev uint64) ([]Mount, error) {
	name := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	return read(func(_ string, m Mount) bool { return m.Dev == name })
}

func read(want func(at string, m Mount) bool) ([]Mount, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the mounts: %w", err)
	}
	return parse(string(text), want), nil
}

// parse returns the mounts that are wanted; at is where one is mounted.
func parse(text string, want func(at string, m Mount) bool) []Mount {
	var all []Mount
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		fields, rest := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(rest) < 2 {
			continue
		}
		parent, _ := strconv.ParseUint(fields[1], 10, 64) // the kernel writes a number
		m := Mount{Parent: parent, Dev: fields[2], Type: rest[0], Source: unescape(rest[1])}
		if want(unescape(fields[4]), m) {
			all = append(all, m)
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
