package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// MountPoint puts the mount point that the command line names in the place of
// mount.point; "" changes nothing. A relative one begins at the working directory.
func MountPoint(point string) Override {
	return func(c *Config, ps *problems) {
		if point == "" || c.Mount == nil {
			return
		}
		ps.origin = map[string]string{"mount.point": "MOUNTPOINT on the command line"}
		if abs, err := filepath.Abs(point); err == nil {
			point = abs
		}
		c.Mount.Point = point
	}
}

// ignoredOptions are what fstab and mount(8) hand to every file system and what does
// not concern this one: it has no devices and no set-user-id programs (nodev and nosuid are
// always in force), and its permissions are checked by the kernel.
var ignoredOptions = map[string]bool{
	"rw": true, "defaults": true, "auto": true, "noauto": true, "nofail": true, "_netdev": true,
	"user": true, "nouser": true, "users": true, "nousers": true, "owner": true, "noowner": true, "group": true, "nogroup": true,
	"dev": true, "nodev": true, "suid": true, "nosuid": true, "exec": true,
	"async": true, "nomand": true, "noiversion": true, "silent": true, "loud": true, "nolazytime": true,
	"atime": true, "diratime": true, "norelatime": true, "nostrictatime": true, "default_permissions": true,
}

// kernelOptions are what the kernel keeps for a mount: findmnt shows them.
var kernelOptions = map[string]bool{
	"noexec": true, "noatime": true, "nodiratime": true, "relatime": true, "strictatime": true, "sync": true, "dirsync": true,
}

// refusedOptions cannot be kept; what to do instead.
var refusedOptions = map[string]string{
	"ro":      "a program that writes is what the mount is for; make it read-only for some with permissions",
	"remount": "reload with SIGHUP, or unmount and mount again: other mount options need a new mount",
	"bind":    "mount it first, then bind it to another place with a line of its own",
}

// MountFlags returns the OPTIONS that the kernel keeps for the mount, such as noexec.
func MountFlags(options string) []string {
	var all []string
	for option := range strings.SplitSeq(options, ",") {
		if kernelOptions[option] {
			all = append(all, option)
		}
	}
	return all
}

// Sloppy returns the OPTIONS without those that MountOptions knows nothing of, as mount(8)
// wants it with its option -s.
func Sloppy(options string) string {
	var known []string
	for option := range strings.SplitSeq(options, ",") {
		if _, err := MountOptions(option); !errors.Is(err, ErrUnknownKey) {
			known = append(known, option)
		}
	}
	return strings.Join(known, ",")
}

// MountOptions reads the comma-separated OPTIONS of `ftfuse mount -o`: allow_other,
// no_allow_other, uid=, gid=, umask=, which override the keys of the same names, those of
// MountFlags, and the options that mount(8) hands to every file system, which change nothing.
func MountOptions(options string) (Override, error) {
	var all []func(*Mount)
	for option := range strings.SplitSeq(options, ",") {
		name, value, given := strings.Cut(option, "=")
		switch name {
		case "allow_other", "no_allow_other":
			if given {
				return nil, fmt.Errorf("%w: %s takes no value", ErrValue, name)
			}
			all = append(all, func(m *Mount) { m.AllowOther = name == "allow_other" })
		case "uid", "gid":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil || n == 1<<32-1 {
				return nil, fmt.Errorf("%w: %s=%q; write a number from 0 to %d", ErrValue, name, value, uint32(1<<32-2))
			}
			id := uint32(n)
			all = append(all, func(m *Mount) {
				if name == "uid" {
					m.UID = &id
				} else {
					m.GID = &id
				}
			})
		case "umask":
			mask, err := parseUmask(value)
			if err != nil {
				return nil, fmt.Errorf("%w: umask=%q; write three octal digits, such as 022", ErrValue, value)
			}
			all = append(all, func(m *Mount) { m.Umask = mask })
		default:
			if why, no := refusedOptions[option]; no {
				return nil, fmt.Errorf("%w: %s: %s", ErrValue, option, why)
			}
			if !harmless(name, option) {
				return nil, fmt.Errorf("%w: %s; there are allow_other, no_allow_other, uid=, gid=, umask=, and those of mount(8) for all file systems", ErrUnknownKey, option)
			}
		}
	}
	return func(c *Config, _ *problems) {
		for _, set := range all {
			if c.Mount != nil {
				set(c.Mount)
			}
		}
	}, nil
}

// harmless reports whether an option changes nothing here, or nothing but a flag of the
// kernel's. What begins with x- or X- is for who reads fstab, comment= for people.
func harmless(name, option string) bool {
	return name == "" || name == "comment" || ignoredOptions[option] || kernelOptions[option] ||
		strings.HasPrefix(name, "x-") || strings.HasPrefix(name, "X-")
}
