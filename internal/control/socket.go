package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// SocketName is the socket's name in the directory of its role.
const SocketName = "ftfuse.sock"

// SocketPath is where the role of that directory answers.
func SocketPath(dir string) string { return filepath.Join(dir, SocketName) }

// socket is a listener whose path goes away with it, unless it is another's by then.
type socket struct {
	net.Listener
	path string
	own  fs.FileInfo
	once sync.Once
	err  error
}

// listen makes the socket of dir, mode 0600, in the place of one that is there. At every
// moment the path is either absent or a socket that is listened on, by whoever made it.
func listen(dir string) (*socket, error) {
	path := SocketPath(dir)
	fail := func(err error) (*socket, error) {
		return nil, fmt.Errorf("make the socket %s: %w", path, err)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != fs.ModeSocket {
		return fail(errors.New("something else has that name; remove it"))
	}
	made := path + ".new"
	if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	name, release, err := shortened(made)
	if err != nil {
		return fail(err)
	}
	defer release()
	l, err := net.Listen("unix", name)
	if err != nil {
		return fail(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	s := &socket{Listener: l, path: path}
	err = os.Chmod(made, 0o600)
	if err == nil {
		s.own, err = os.Lstat(made)
	}
	if err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		return fail(errors.Join(err, l.Close(), os.Remove(made)))
	}
	return s, nil
}

// Close stops listening and removes the path.
func (s *socket) Close() error {
	s.once.Do(func() {
		if st, err := os.Lstat(s.path); err == nil && os.SameFile(st, s.own) {
			s.err = os.Remove(s.path)
		}
		s.err = errors.Join(s.err, s.Listener.Close())
	})
	return s.err
}

// maxSocketPath is what fits into sockaddr_un with its NUL (unix(7)).
const maxSocketPath = len(unix.RawSockaddrUnix{}.Path) - 1

// shortened returns a name of path that a socket address can hold, good until release.
func shortened(path string) (name string, release func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open its directory: %w", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(path)), func() { unix.Close(fd) }, nil
}
