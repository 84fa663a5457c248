package output

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Perm is who owns what is made below a Root, and who may use it. What is nil is left as the
// kernel makes it: with Options.FileMode and Options.DirMode less the umask, of the process's
// user and group. What is given holds exactly.
type Perm struct {
	Mode    *uint32 `json:"mode,omitempty"`
	DirMode *uint32 `json:"dir_mode,omitempty"`
	UID     *uint32 `json:"uid,omitempty"`
	GID     *uint32 `json:"gid,omitempty"`
}

// A file or a directory that is to have more than the kernel gives it is made with these modes,
// which nobody else can use, and gets its own at the end. One of the process's own that has them
// and is empty was left by a kill in between, and is finished when it is met.
const (
	rawFile = 0o1600 // the sticky bit of a file means nothing (chmod(2)): nobody else sets it
	rawDir  = 0o1700
)

// file returns the mode for open(2), and whether the file gets more than that at the end.
func (p *Perm) file(def uint32) (mode uint32, finish bool) {
	if p.Mode == nil && p.UID == nil && p.GID == nil {
		return def, false
	}
	return rawFile, true
}

// dir is file for a directory.
func (p *Perm) dir(def uint32) (mode uint32, finish bool) {
	if p.DirMode == nil && p.UID == nil && p.GID == nil {
		return def, false
	}
	return rawDir, true
}

// finishFile gives an open file what p says, if it is one that was made for that, by this
// call or before a kill.
func (p *Perm) finishFile(fd int, def uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Size != 0 || st.Mode&0o7777 != rawFile || int(st.Uid) != os.Geteuid() {
		return nil
	}
	return p.give(fmt.Sprintf("/proc/self/fd/%d", fd), p.Mode, def)
}

// finishDir is finishFile for a directory, of which dir is a descriptor.
func (p *Perm) finishDir(fd int, def uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&0o7777&^unix.S_ISGID != rawDir || int(st.Uid) != os.Geteuid() { // setgid is inherited
		return nil
	}
	return p.give(fmt.Sprintf("/proc/self/fd/%d", fd), p.DirMode, def)
}

// give sets owner and mode of what path, a descriptor's link in /proc, stands for: the owner
// first, since the kernel takes setuid bits away with it.
func (p *Perm) give(path string, mode *uint32, def uint32) error {
	uid, gid := -1, -1
	if p.UID != nil {
		uid = int(*p.UID)
	}
	if p.GID != nil {
		gid = int(*p.GID)
	}
	if uid >= 0 || gid >= 0 {
		if err := os.Chown(path, uid, gid); err != nil {
			return fmt.Errorf("give it to uid %d, gid %d: %w", uid, gid, err)
		}
	}
	if mode != nil {
		def = *mode
	} else {
		def &^= umask
	}
	if err := unix.Chmod(path, def); err != nil {
		return fmt.Errorf("set its mode to %04o: %w", def, err)
	}
	return nil
}

// umask is the process's, which can only be read by setting it.
var umask = func() uint32 {
	m := unix.Umask(0o077)
	unix.Umask(m)
	return uint32(m)
}()
