package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes.
type Size int64

// String writes s with the largest binary unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && s%u.size == 0 {
			return strconv.FormatInt(int64(s/u.size), 10) + u.name
		}
	}
	return "0"
}

var sizeUnits = []struct {
	name string
	size Size
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}

// ErrSize and ErrDuration are returned by ParseSize and ParseDuration.
var (
	ErrSize     = errors.New(`not a size such as "64KiB", "1MiB" or "8GiB"`)
	ErrDuration = errors.New(`not a duration such as "5ms", "30s", "1h30m" or "7d"`)
)

// ParseSize reads a whole number and a unit (B, KiB, MiB, GiB, TiB); the unit of 0
// may be left out.
func ParseSize(text string) (Size, error) {
	digits := strings.TrimRight(text, "BKMGTi")
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		return 0, ErrSize
	}
	unit := text[len(digits):]
	if n == 0 && unit == "" {
		return 0, nil
	}
	for _, u := range sizeUnits {
		if unit == u.name {
			if n > uint64(math.MaxInt64/u.size) {
				return 0, fmt.Errorf("%w: more than 8 EiB", ErrSize)
			}
			return Size(n) * u.size, nil
		}
	}
	return 0, ErrSize
}

// ParseDuration reads what time.ParseDuration does, and whole days as "7d".
func ParseDuration(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 63)
		if err != nil || n > uint64(math.MaxInt64/(24*time.Hour)) {
			return 0, ErrDuration
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, ErrDuration
	}
	return d, nil
}
