package service

import (
	"reflect"

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

// SameForward reports whether a role sends by next as it does by now.
func SameForward(now, next *config.Config, role config.Role) bool {
	groups := func(c *config.Config) []forward.GroupConfig {
		if role == config.RoleMount {
			return Groups(c.Mount.Forwards)
		}
		return Groups(c.Relay.Forwards)
	}
	a, b := now.QueueFor(role), next.QueueFor(role)
	return reflect.DeepEqual(groups(now), groups(next)) && a.KeepUntil == b.KeepUntil && a.FinalTimeout == b.FinalTimeout
}
