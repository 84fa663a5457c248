package sink

import "time"

// monday is a Monday: the longer periods are counted from it.
const monday = 4 // 1970-01-05, in days since the epoch

// began returns when the period of that length began that now is in, by the clock on the
// wall in now's zone: periods of up to a day are counted from midnight, longer ones in days
// from a Monday, with the part of a day that is left over ignored. So "24h" begins at
// midnight, "1h" at the full hour, "168h" on Mondays, also where clocks are changed.
func began(now time.Time, every time.Duration) time.Time {
	const day = 24 * time.Hour
	y, m, d := now.Date()
	if every > day {
		days := int64(every / day)
		today := time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Unix()/86400 - monday
		over := today % days
		if over < 0 {
			over += days
		}
		return time.Date(y, m, d-int(over), 0, 0, 0, 0, now.Location())
	}
	h, min, s := now.Clock()
	clock := time.Duration(h)*time.Hour + time.Duration(min)*time.Minute + time.Duration(s)*time.Second + time.Duration(now.Nanosecond())
	at := clock - clock%every
	return time.Date(y, m, d, int(at/time.Hour), int(at%time.Hour/time.Minute), int(at%time.Minute/time.Second), int(at%time.Second), now.Location())
}

// next returns when it is to be looked whether another period has begun: when one begins, as the
// clock on the wall goes now, and always behind now. A period in which clocks are set back lasts longer
// than every.
func next(now time.Time, every time.Duration) time.Time {
	const day = 24 * time.Hour
	from := began(now, every)
	y, m, d := from.Date()
	at := time.Date(y, m, d+int(max(every, day)/day), 0, 0, 0, 0, from.Location())
	if end := from.Add(every); every < day && end.Before(at) {
		at = end
	}
	if !at.After(now) { // an hour that comes twice, or a midnight that does not come
		return now.Add(lookAtClock)
	}
	return at
}
