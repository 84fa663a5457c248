// Package inotify reads what an inotify(7) descriptor gives. Making it and its watches is the
// caller's.
package inotify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// Event is one event of a watch.
type Event struct {
	Watch int32  // -1 where events were lost (IN_Q_OVERFLOW)
	Mask  uint32 // IN_MODIFY and the like
	Name  []byte // in the directory that is watched; empty if it is the watched file's own. Valid until the next read
}

// Read calls take with what each read gave, for Events, until in is closed; it returns nil then, else what os.File.Read did.
func Read(in *os.File, take func([]byte)) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := in.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		take(buf[:n])
	}
}

// Events are the events of what one read gave: for each wd i32, mask u32, cookie u32, length of
// name u32, name, filled up with zeros (struct inotify_event, in the machine's order: little-endian).
// One that is cut short is the last.
func Events(b []byte) iter.Seq[Event] {
	le := binary.LittleEndian
	return func(yield func(Event) bool) {
		for len(b) >= unix.SizeofInotifyEvent {
			end := min(len(b), unix.SizeofInotifyEvent+int(le.Uint32(b[12:])))
			name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:end], []byte{0})
			e := Event{Watch: int32(le.Uint32(b)), Mask: le.Uint32(b[4:]), Name: name}
			b = b[end:]
			if !yield(e) {
				return
			}
		}
	}
}
