// Command badworker is an ftfuse whose worker reads its configuration, waits for its
// turn, and then cannot serve.
package main

import (
	"context"
	"errors"
	"os"

	"ftfuse/config"
	"ftfuse/mount"
	"ftfuse/mount/holder"
)

func main() {
	link, err := holder.FromEnv()
	if err != nil || link == nil {
		os.Exit(2)
	}
	cfg, err := config.Load(os.Args[len(os.Args)-1])
	if err == nil {
		err = link.Hello(context.Background(), "bad", mount.HolderSettings(cfg), nil)
	}
	if err == nil {
		err = errors.New("this one never serves")
	}
	link.Failed(err)
	os.Exit(1)
}
