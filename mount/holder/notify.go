package holder

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What systemd tells a service: sd_notify(3), sd_listen_fds(3).
const (
	notifyEnv = "NOTIFY_SOCKET"

	// storedName is the name of what is in systemd's store of descriptors: the connection,
	// and a file in memory with what belongs to it. They go there in one message, so that
	// never one is there alone. The unit needs FileDescriptorStoreMax=2.
	storedName = "ftfuse"
)

// systemd is the service manager that started this process, if one did. Its methods do
// nothing otherwise. They are called by the holder's loop only.
type systemd struct{ socket string }

func newSystemd() *systemd { return &systemd{socket: os.Getenv(notifyEnv)} }

// notify sends lines of NAME=VALUE, with descriptors.
func (s *systemd) notify(state string, fds ...int) error {
	if s.socket == "" {
		return nil
	}
	name := s.socket
	if name[0] != '/' && name[0] != '@' {
		return fmt.Errorf("notify systemd: %s = %q is not a socket of this kind", notifyEnv, name)
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a socket to notify systemd: %w", err)
	}
	defer unix.Close(sock)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	limit := unix.NsecToTimeval(int64(sendLimit))
	if err := unix.SetsockoptTimeval(sock, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	if err := unix.Sendmsg(sock, []byte(state), rights, &unix.SockaddrUnix{Name: name}, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("notify systemd at %s: %w", name, err)
	}
	return nil
}

// store puts the connection into systemd's store, in the place of what was there.
func (s *systemd) store(fd int, state []byte) error {
	if s.socket == "" {
		return nil
	}
	mem, err := memory("ftfuse-state", state)
	if err != nil {
		return err
	}
	defer unix.Close(mem)
	return errors.Join(s.forget(), s.notify("FDSTORE=1\nFDNAME="+storedName, fd, mem))
}

// forget empties the store.
func (s *systemd) forget() error { return s.notify("FDSTOREREMOVE=1\nFDNAME=" + storedName) }

// firstListen is the first descriptor that systemd passes (SD_LISTEN_FDS_START).
const firstListen = 3

// stored returns what systemd kept for a predecessor, -1 if nothing. All other descriptors
// that it passed are closed. The variables are removed.
func stored() (fd int, state []byte) {
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	count, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(v)
	}
	if pid != os.Getpid() {
		return -1, nil
	}
	fd = -1
	for i := range min(count, 1024) {
		got := firstListen + i
		unix.CloseOnExec(got)
		var st unix.Stat_t
		if i >= len(names) || names[i] != storedName || unix.Fstat(got, &st) != nil {
			_ = unix.Close(got)
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG && fd < 0 {
			fd = got
			continue
		}
		if state == nil {
			state, _ = contents(got)
		}
		_ = unix.Close(got)
	}
	return fd, state
}
