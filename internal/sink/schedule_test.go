package sink

import (
	"testing"
	"time"
)

// On the day on which clocks are set back a period lasts an hour longer than it is called. In that
// hour the rotor looked a thousand times a second at all files whether the next one had begun.
func TestTheRotorSpunForAnHourWhenClocksWereSetBack(t *testing.T) {
	for _, zone := range []string{"Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "UTC"} {
		in, err := time.LoadLocation(zone)
		if err != nil {
			t.Skip(err)
		}
		for _, every := range []time.Duration{time.Hour, 7 * time.Hour, 24 * time.Hour, 36 * time.Hour, 168 * time.Hour, 45 * time.Minute} {
			for _, day := range []time.Time{
				time.Date(2026, 10, 24, 0, 0, 0, 0, in), time.Date(2026, 3, 28, 0, 0, 0, 0, in), time.Date(2018, 11, 3, 0, 0, 0, 0, in), // at midnight
				time.Date(2018, 2, 17, 0, 0, 0, 0, in), time.Date(2026, 4, 4, 0, 0, 0, 0, in),
			} {
				for now := day; now.Sub(day) < 60*time.Hour; now = now.Add(7 * time.Minute) {
					at := next(now, every)
					switch {
					case !at.After(now):
						t.Fatalf("%s, every %v: at %v the next period begins at %v", zone, every, now, at)
					case zone == "UTC" && (!began(at, every).Equal(at) || !began(at.Add(-1), every).Equal(began(now, every))):
						t.Fatalf("every %v: at %v the next period begins at %v", every, now, at)
					}
				}
			}
		}
	}
}
