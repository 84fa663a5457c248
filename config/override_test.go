package config

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestMountOptions(t *testing.T) {
	o, err := MountOptions("rw,uid=1000,gid=100,umask=027,no_allow_other,noatime,_netdev,x-systemd.automount,x-a=b,")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse("a.toml", []byte(good+"[mount.queue]\n"), o)
	if err != nil {
		t.Fatal(err)
	}
	if m := c.Mount; m.UID == nil || *m.UID != 1000 || m.GID == nil || *m.GID != 100 || m.Umask != 0o027 || m.AllowOther {
		t.Errorf("got uid %v, gid %v, umask %#o, allow_other %v", m.UID, m.GID, m.Umask, m.AllowOther)
	}
	for options, want := range map[string]error{
		"ro": ErrValue, "remount": ErrValue, "rw,bind": ErrValue, "uid": ErrValue, "uid=root": ErrValue, "gid=-1": ErrValue, "uid=4294967295": ErrValue,
		"umask=8": ErrValue, "umask=7777": ErrValue, "allow_other=1": ErrValue, "rw=1": ErrUnknownKey, "bla": ErrUnknownKey,
	} {
		if _, err := MountOptions(options); !errors.Is(err, want) {
			t.Errorf("-o %s gives %v, want %v", options, err, want)
		}
	}
}

func TestMountFlagsAreWhatTheKernelKeeps(t *testing.T) {
	if got := MountFlags("rw,noexec,uid=1,noatime,_netdev,x-noexec"); !slices.Equal(got, []string{"noexec", "noatime"}) {
		t.Errorf("got %v", got)
	}
	if _, err := MountOptions("noexec,noatime,relatime,sync,comment=x,X-mount.mkdir=0755,user,exec"); err != nil {
		t.Error(err)
	}
}

// TestSloppyLeavesOutWhatIsUnknown, and nothing that is wrong.
func TestSloppyLeavesOutWhatIsUnknown(t *testing.T) {
	if got := Sloppy("rw,bla,uid=1,fsc=2,umask=9,ro"); got != "rw,uid=1,umask=9,ro" {
		t.Errorf("got %q", got)
	}
}

func TestMountPointOfTheCommandLine(t *testing.T) {
	for given, want := range map[string]string{"": "/mnt/ftfuse", "/x/y/": "/x/y", "/x/../y": "/y"} {
		c, err := Parse("a.toml", []byte(good), MountPoint(given))
		if err != nil {
			t.Fatal(err)
		}
		if c.Mount.Point != want {
			t.Errorf("%q becomes %s, want %s", given, c.Mount.Point, want)
		}
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse("/a.toml", []byte(good), MountPoint("m"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Mount.Point != filepath.Join(wd, "m") {
		t.Errorf("a relative mount point becomes %s", c.Mount.Point)
	}
}

// The problem is in what was typed, not in a line of the file.
func TestMountPointOfTheCommandLineIsNamedInItsProblem(t *testing.T) {
	_, err := Parse("a.toml", []byte(good), MountPoint("/var/lib/ftfuse/m"))
	var p *Problem
	if !errors.As(err, &p) || !errors.Is(p, ErrConflict) || p.Line != 0 || p.File == "a.toml" {
		t.Errorf("got %+v", p)
	}
	// Another place than the file's makes a state_dir wrong that was right.
	_, err = Parse("a.toml", []byte(good), MountPoint("/var/lib"))
	if !errors.As(err, &p) || p.Key != "state_dir" {
		t.Errorf("got %v", err)
	}
}
