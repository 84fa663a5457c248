package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"ftfuse/config"
	"ftfuse/internal/control"
	"ftfuse/internal/mountinfo"
	"ftfuse/mount/kernel"
)

// umountMain is what umount(8) starts: it unmounts, and returns when what was accepted is
// sent, or shutdown_timeout is over, so that a host that goes down does not kill the mount
// while it sends.
func umountMain(args []string, stderr io.Writer) int {
	err := umountRun(args, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", umountHelper, err)
	}
	return mountCode(err)
}

func umountRun(args []string, stderr io.Writer) error {
	dir, flags, err := parseUmount(args)
	if err != nil {
		return err
	}
	all, err := mountinfo.On(dir)
	if err != nil {
		return err
	}
	if len(all) == 0 || all[len(all)-1].Type != kernel.FSType {
		return fmt.Errorf("%s: not mounted by ftfuse", dir)
	}
	source := all[len(all)-1].Source
	if err := unix.Unmount(dir, flags|unix.UMOUNT_NOFOLLOW); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%s: target is busy", dir)
		}
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if flags&unix.MNT_DETACH != 0 {
		return nil // it goes on until the last file is closed
	}
	file := config.DefaultFile
	if strings.HasPrefix(source, "/") {
		file = source
	}
	cfg, err := config.Load(file, config.MountPoint(dir))
	if err != nil || cfg.Mount == nil {
		return nil // with another file, config=: it is not waited for
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	if servesElsewhere(ctx, cfg, dir) {
		return nil
	}
	if err := awaitEnd(ctx, cfg); err != nil {
		fmt.Fprintf(stderr, "%s: %s is unmounted; what it accepted is still being sent\n", umountHelper, dir)
	}
	return nil
}

// servesElsewhere reports whether the mount that cfg is about is another one than that which was
// on dir, and goes on: a mount with config= is not that of the file that its source leads to.
func servesElsewhere(ctx context.Context, cfg *config.Config, dir string) bool {
	role, _, err := control.Status(ctx, cfg.RoleDir(config.RoleMount))
	if err != nil || role.Point == dir {
		return false
	}
	all, err := mountinfo.On(role.Point)
	return err == nil && len(all) > 0 && all[len(all)-1].Type == kernel.FSType
}

// parseUmount reads `umount.fuse.ftfuse DIR [-flnrv] [-N NS] [-t TYPE]` (umount(8), "External
// helpers").
func parseUmount(args []string) (dir string, flags int, err error) {
	for i := 1; i < len(args); i++ {
		flag := args[i]
		if len(flag) < 2 || flag[0] != '-' {
			if dir != "" {
				return "", 0, usagef("unexpected argument %q", flag)
			}
			dir = flag
			continue
		}
		for _, c := range flag[1:] {
			switch c {
			case 'f':
				flags |= unix.MNT_FORCE
			case 'l':
				flags |= unix.MNT_DETACH
			case 'n', 'r', 'v':
			case 't':
				i++
			default:
				return "", 0, usagef("-%c: unknown option", c)
			}
		}
	}
	if dir == "" {
		return "", 0, usagef("the mount point must follow")
	}
	return dir, flags, nil
}
