package service

import (
	"ftfuse/config"
	"ftfuse/internal/output"
	"ftfuse/internal/sink"
)

// Outputs are the output files as they are configured. Those of plugins are the plugins' own.
func Outputs(outputs []config.Output) []sink.Output {
	var all []sink.Output
	for i := range outputs {
		o := &outputs[i]
		if len(o.Plugin) > 0 {
			continue
		}
		all = append(all, sink.Output{
			Files: perm(o),
			Hosts: o.Hosts, Path: o.Path, Dir: o.Dir, File: o.File, Format: o.Format, Time: o.Time,
			Rotate: sink.Rotate{Size: int64(o.Rotate.Size), Every: o.Rotate.Every, Keep: o.Rotate.Keep, Compress: string(o.Rotate.Compress)},
		})
	}
	return all
}

// perm is who owns what an output makes, its own files or that of its plugin.
func perm(o *config.Output) output.Perm {
	return output.Perm{Mode: o.Mode, DirMode: o.DirMode, UID: o.UID, GID: o.GID}
}
