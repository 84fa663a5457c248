package config

import (
	"errors"
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "0B": 0, "1B": 1, "64KiB": 64 << 10, "1MiB": 1 << 20, "8GiB": 8 << 30, "7TiB": 7 << 40, "8388607TiB": 8388607 << 40,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "1", "B", "KiB", "-1B", "+1B", "1 B", "1K", "1KB", "1kib", "1.5MiB", "8388608TiB", "99999999999999999999B", "1BB", "1KiBKiB", "0x1B", "1_0B"} {
		if got, err := ParseSize(text); !errors.Is(err, ErrSize) {
			t.Errorf("%q is %d, %v; want an error", text, got, err)
		}
	}
	for size, want := range map[Size]string{0: "0", 1: "1B", 1000: "1000B", 1 << 10: "1KiB", 1536: "1536B", 8 << 30: "8GiB", 3 << 19: "1536KiB"} {
		if got := size.String(); got != want {
			t.Errorf("%d is %s, want %s", int64(size), got, want)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "5ms": 5 * time.Millisecond, "1h30m": 90 * time.Minute, "7d": 7 * 24 * time.Hour, "1.5s": 1500 * time.Millisecond,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%q is %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "1", "-1s", "d", "1.5d", "-1d", "1d12h", "999999999d", "soon"} {
		if got, err := ParseDuration(text); !errors.Is(err, ErrDuration) {
			t.Errorf("%q is %v, %v; want an error", text, got, err)
		}
	}
}
