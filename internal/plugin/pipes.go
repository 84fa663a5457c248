package plugin

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// pipes are the ends that the child gets, and ours.
type pipes struct {
	childs []*os.File
	ours   []*os.File
}

func (p *pipes) closeAll() {
	for _, f := range append(p.childs, p.ours...) {
		f.Close()
	}
}

// pipe makes a pipe. The child's end blocks, ours does not, so that a Close ends a read or
// a write of it.
func (p *pipes) pipe(childReads bool) (childs, ours *os.File, err error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make a pipe for a plugin: %w", err)
	}
	theirs, mine := fd[1], fd[0]
	if childReads {
		theirs, mine = fd[0], fd[1]
		_, _ = unix.FcntlInt(uintptr(mine), unix.F_SETPIPE_SZ, pipeBytes) // beyond a limit of the user's it stays as it is
	}
	err = unix.SetNonblock(mine, true)
	childs, ours = os.NewFile(uintptr(theirs), "|child"), os.NewFile(uintptr(mine), "|plugin")
	p.childs, p.ours = append(p.childs, childs), append(p.ours, ours)
	if err != nil {
		return nil, nil, fmt.Errorf("set up a pipe for a plugin: %w", err)
	}
	return childs, ours, nil
}
