// Package bootid tells one boot of the machine from another.
package bootid

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"strings"
)

// ID is the kernel's random id of this boot (/proc/sys/kernel/random/boot_id), or random
// bits where it has none, so that every start then looks like another boot.
func ID() (id [16]byte) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil {
		b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
		if err == nil && len(b) == len(id) {
			return [16]byte(b)
		}
	}
	rand.Read(id[:])
	return id
}
