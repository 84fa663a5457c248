package service

import (
	"ftfuse/config"
	"ftfuse/internal/forward"
)

var forwardModes = map[config.ForwardMode]forward.Mode{
	config.ForwardAny: forward.Any, config.ForwardHash: forward.Hash, config.ForwardBroadcast: forward.Broadcast,
}

// Groups are the groups of destinations as they are configured.
func Groups(forwards []config.Forward) []forward.GroupConfig {
	all := make([]forward.GroupConfig, len(forwards))
	for i := range forwards {
		f := &forwards[i]
		all[i] = forward.GroupConfig{
			Name: f.Name, Mode: forwardModes[f.Mode], Primary: f.Primary, Secondary: f.Secondary,
			Window: int64(f.Window), FailbackAfter: f.FailbackAfter,
		}
	}
	return all
}
