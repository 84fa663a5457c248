package config

import "time"

// Binary units, in bytes.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

func defaultConfig() *Config {
	return &Config{
		StateDir:        "/var/lib/ftfuse",
		ShutdownTimeout: 10 * time.Second,
		Log:             Log{Level: "info", Format: "text"},
		Queue:           DefaultQueue(),
	}
}

// DefaultQueue is a queue of which nothing was said.
func DefaultQueue() Queue {
	return Queue{
		Durability:  DurabilityJournal,
		CommitEvery: 5 * time.Millisecond,
		CommitBytes: MiB,
		MaxBytes:    8 * GiB,
		OnFull:      FullBlock,
		Compression: CompressionNone,

		KeepUntil:    KeepUntilHop,
		FinalTimeout: time.Minute,
	}
}

// DefaultRule is what holds for a file that no rule matches: it is transferred, line
// by line. A rule begins with it.
func DefaultRule() Rule {
	return Rule{
		Path:        "**",
		Transfer:    true,
		Attribution: AttributionOpen,
		Mode:        ModeLine,
		MaxLine:     MiB,
		MaxRecord:   MiB,
		Default:     VerdictAllow,
		PluginAck:   PluginAckPipe,
	}
}

// DefaultOutput is the output of a receiver that has none.
func DefaultOutput() Output {
	return Output{
		Hosts:  "*",
		Path:   "**",
		Dir:    "/data/ftfuse",
		File:   "%H/%F",
		Format: "%L",
		Time:   "%Y-%m-%dT%H:%M:%S.%-%z",

		PluginAck: PluginAckPipe,
	}
}

func defaultMount(c *Config) *Mount {
	return &Mount{
		Point:      "/mnt/ftfuse",
		AllowOther: true,
		Readback:   64 * KiB,
		Offline:    OfflineTake,
		Overwrite:  OverwriteAppend,
		Umask:      0o022,

		HolderTimeout: 30 * time.Second,

		HTTP:  c.HTTP,
		Queue: c.Queue,
	}
}

func defaultForward() Forward {
	return Forward{Mode: ForwardAny, Window: 64 * MiB, FailbackAfter: 30 * time.Second}
}

func defaultListener() Listener {
	return Listener{MaxConnections: 1024, MaxConnectionsPerAddress: 64}
}

func defaultRelay(c *Config) *Relay {
	return &Relay{Listen: ":7400", Listener: defaultListener(), HTTP: c.HTTP, Queue: c.Queue}
}

func defaultReceive(c *Config) *Receive {
	return &Receive{Listen: ":7401", Listener: defaultListener(), HTTP: c.HTTP, Queue: c.Queue}
}
