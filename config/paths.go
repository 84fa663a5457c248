package config

import "path/filepath"

// Where the configuration is looked for when no -c is given.
const (
	DefaultFile = "/etc/ftfuse/ftfuse.toml"
	FileEnv     = "FTFUSE_CONFIG"
)

// RoleDir is <state_dir>/<role>: the role's lock, socket and state.
func (c *Config) RoleDir(r Role) string { return filepath.Join(c.StateDir, string(r)) }

// QueueDir is <state_dir>/<role>/queue.
func (c *Config) QueueDir(r Role) string { return filepath.Join(c.RoleDir(r), "queue") }

// PluginDir is <state_dir>/<role>/plugin: which processes are the role's plugins.
func (c *Config) PluginDir(r Role) string { return filepath.Join(c.RoleDir(r), "plugin") }

// DeadDir is <state_dir>/<role>/dead: what can never be written.
func (c *Config) DeadDir(r Role) string { return filepath.Join(c.RoleDir(r), "dead") }
