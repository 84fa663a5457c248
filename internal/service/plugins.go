package service

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"ftfuse/config"
	"ftfuse/internal/output"
	"ftfuse/internal/plugin"
	"ftfuse/queue"
)

// OutputPlugins are the plugins of the outputs of a relay or a receiver. One is the same,
// with what the queue has for it, as long as hosts, path and program are (of several that
// are alike in that, by their order).
func OutputPlugins(outputs []config.Output) []plugin.Plugin {
	var all []plugin.Plugin
	alike := map[string]int{}
	for i := range outputs {
		o := &outputs[i]
		if len(o.Plugin) == 0 {
			continue
		}
		who := strings.Join([]string{"output", o.Hosts, o.Path, o.Plugin[0]}, "\x00")
		alike[who]++
		all = append(all, plugin.Plugin{
			Cursor: plugin.CursorOf(who, fmt.Sprint(alike[who])), Rule: o.Path,
			Command: o.Plugin[0], Args: plugin.Arguments(o.Plugin[1:]), Ack: plugin.Ack(o.PluginAck), Timeout: o.PluginTimeout,
			Hosts: o.Hosts, Path: o.Path, Format: o.Format, Time: o.Time, Dir: o.Dir, File: o.File, Files: output.Options{Perm: perm(o)},
		})
	}
	return all
}

// RulePlugins are the plugins of the rules of a mount; cursorOf names that of a rule.
func RulePlugins(rules []config.Rule, cursorOf func(*config.Rule) string) []plugin.Plugin {
	var all []plugin.Plugin
	seen := map[string]bool{}
	for i := range rules {
		r := &rules[i]
		if len(r.Plugin) == 0 || seen[r.Path] {
			continue // a second rule of one path never matches
		}
		seen[r.Path] = true
		p := plugin.Plugin{
			Cursor: cursorOf(r), Rule: r.Path,
			Command: r.Plugin[0], Args: plugin.Arguments(r.Plugin[1:]), Ack: plugin.Ack(r.PluginAck), Timeout: r.PluginTimeout,
			Hosts: "*", Path: "**", Format: "%L", Time: config.DefaultOutput().Time, // its cursor has the batches of the rule, and no others
		}
		if r.PluginOutput != "" {
			dir, name := filepath.Split(r.PluginOutput)
			p.Dir, p.File = filepath.Clean(dir), strings.ReplaceAll(name, "%", "%%")
		}
		all = append(all, p)
	}
	return all
}

// PluginCursors are the queue's cursors of plugins.
func PluginCursors(plugins []plugin.Plugin) []string {
	var names []string
	for i := range plugins {
		names = append(names, plugins[i].Cursor)
	}
	return names
}

// OpenPlugins makes the plugins of a role over its queue.
func OpenPlugins(c *config.Config, role config.Role, q *queue.Queue, plugins []plugin.Plugin, log *slog.Logger) (*plugin.Set, error) {
	return plugin.Open(plugin.Options{
		Queue: q, Plugins: plugins, Host: c.Host, Role: string(role), Dir: c.PluginDir(role), Logger: log,
	})
}
