package mount

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"slices"
	"strings"

	"ftfuse/config"
	"ftfuse/internal/plugin"
)

// Local consumers are members of routes beside the groups of destinations: output/NAME and
// plugin/NAME. What identifies one gives it its name, so that it is the same however rules
// are ordered. All outputs are written by one sink, since a file has one owner, whose
// cursor is outputCursor; each plugin has a cursor of the name of its member.
const (
	memberOutput = "output/"
	outputCursor = "apply"
)

// consumers are the local consumers of what a rule matches.
func consumers(r *config.Rule) []string {
	var members []string
	if r.Output != "" {
		members = append(members, outputMember(r.Output))
	}
	if len(r.Plugin) > 0 {
		members = append(members, pluginMember(r))
	}
	return members
}

// outputMember is the member of a rule's output: the name of a [[mount.output]], or the
// absolute template that it is.
func outputMember(output string) string {
	if !path.IsAbs(output) {
		return memberOutput + output
	}
	sum := sha256.Sum256([]byte(output))
	return memberOutput + hex.EncodeToString(sum[:4])
}

// pluginMember is the member of a rule's plugin, and the name of its cursor: a second rule
// of the same path never matches.
func pluginMember(r *config.Rule) string { return plugin.CursorOf("rule", r.Path) }

// keepsHere reports whether a rule has a local consumer, so that what it matches is captured
// although it is not transferred.
func keepsHere(r *config.Rule) bool { return len(consumers(r)) > 0 }

// isLocal reports whether a cursor or a member of a route is that of a local consumer.
func isLocal(name string) bool {
	return name == outputCursor || strings.HasPrefix(name, memberOutput) || strings.HasPrefix(name, plugin.CursorPrefix)
}

// wantsLocally reports whether the cursor of a local consumer is for a route of these members.
func wantsLocally(cursor string, members []string) bool {
	if cursor != outputCursor {
		return slices.Contains(members, cursor)
	}
	return slices.ContainsFunc(members, func(m string) bool { return strings.HasPrefix(m, memberOutput) })
}

// localCursors are the cursors of the local consumers: that of all outputs, which is there
// without any too, and those of the rules' plugins.
func localCursors(m *config.Mount) []string {
	names := []string{outputCursor}
	for i := range m.Rules {
		if r := &m.Rules[i]; len(r.Plugin) > 0 && !slices.Contains(names, pluginMember(r)) {
			names = append(names, pluginMember(r))
		}
	}
	return names
}
