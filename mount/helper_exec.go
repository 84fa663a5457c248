package mount

import "time"

// probeLimit is how long a mount may take to answer statfs before it counts as live.
const probeLimit = 2 * time.Second

func afterProbe() <-chan time.Time { return time.After(probeLimit) }
