//go:build !race

package mount

const underRace = false
