package config

import (
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
// not concern this one: its files are ordinary ones, owned by their writers.
var ignoredOptions = map[string]bool{
	"rw": true, "defaults": true, "auto": true, "noauto": true, "user": true, "nouser": true, "users": true,
	"_netdev": true, "nofail": true, "nodev": true, "nosuid": true, "noexec": true,
	"atime": true, "noatime": true, "relatime": true, "default_permissions": true,
}

// MountOptions reads the comma-separated OPTIONS of `ftfuse mount -o`: allow_other,
// no_allow_other, uid=, gid=, umask=, and the options that mount(8) hands to every
// file system, which change nothing. They override the keys of the same names.
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
			if name != "" && !ignoredOptions[option] && !strings.HasPrefix(name, "x-") {
				return nil, fmt.Errorf("%w: %s; there are allow_other, no_allow_other, uid=, gid=, umask=", ErrUnknownKey, option)
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
