package config

import (
	"path/filepath"
	"regexp"
)

// stateDirLine is a top-level state_dir as it is written most.
var stateDirLine = regexp.MustCompile(`(?m)\A(?:[^\[\n]*\n)*?[ \t]*state_dir[ \t]*=[ \t]*["']([^"'\n]+)["']`)

// Locate returns what a file that is bad would configure as the state_dir, as far as can be
// seen, so that the roles that run with an earlier content can be asked: Roles are all three.
func Locate(path string) *Config {
	c := defaultConfig()
	c.File = path
	text, err := readFile(path)
	if err != nil {
		return c
	}
	if m := stateDirLine.FindSubmatch(text); m != nil {
		c.StateDir = filepath.Clean(string(m[1]))
	}
	return c
}
