//go:build race

package relay

func init() { raceEnabled = true }
