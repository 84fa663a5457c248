package mount

import (
	"path/filepath"
	"slices"

	"ftfuse/config"
	"ftfuse/mount/kernel"
)

// Capture says which capture a mount of this process would have with the configuration,
// for operators: "passthrough" where the kernel writes for programs that append, or
// "daemon (why not)".
func Capture(cfg *config.Config) string {
	s := inForce(cfg, kernel.Probe(filepath.Join(cfg.RoleDir(config.RoleMount), "spool")))
	if s.Passthrough {
		return "passthrough"
	}
	return "daemon (" + s.Why + ")"
}

// inForce is what the machine supports, less what the configuration keeps from it.
func inForce(cfg *config.Config, s kernel.Support) kernel.Support {
	if why := daemonOnly(cfg); why != "" {
		return kernel.Support{Why: why}
	}
	return s
}

// daemonOnly says why the kernel must write to no file of a mount by itself; "" if it may.
func daemonOnly(cfg *config.Config) string {
	q, rules := cfg.QueueFor(config.RoleMount), cfg.Mount.Rules
	switch {
	case q.Durability == config.DurabilitySync:
		return `durability = "sync": the daemon answers each write(2) when it is on the disk`
	case q.OnFull == config.FullError && !ownFileSystem(cfg.RoleDir(config.RoleMount)):
		return `on_full = "error": the daemon refuses a write(2) when max_bytes is reached; mount a file system of its own on the spool directory to have its size for the limit`
	case slices.ContainsFunc(rules, func(r config.Rule) bool { return r.Attribution != config.AttributionWrite }):
		return ""
	case slices.ContainsFunc(rules, func(r config.Rule) bool { return r.Path == "**" }):
		return `every rule says attribution = "write"`
	}
	return "" // what no rule names is "open"
}
