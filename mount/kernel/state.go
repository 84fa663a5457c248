package kernel

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// What State returns, version 1; docs/protocol.md. The two messages are the kernel's, in
// its byte order; the rest is little-endian.
const (
	stateMagic   = "FTFUSEK\x00"
	stateVersion = 1
	stateHead    = 20
	stateMax     = stateHead + initInMax + initOutSize + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// State returns what another process needs, beside the descriptor, to take the
// connection over with Attach. It does not change after Connect; before, it is nil.
func (d *Device) State() []byte {
	if d.reply == nil {
		return nil
	}
	le := binary.LittleEndian
	b := append(make([]byte, 0, stateMax), stateMagic...)
	b = le.AppendUint32(b, stateVersion)
	b = le.AppendUint32(b, uint32(len(d.request)))
	b = le.AppendUint32(b, uint32(len(d.reply)))
	b = append(append(b, d.request...), d.reply...)
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeState(b []byte) (request, reply []byte, err error) {
	le := binary.LittleEndian
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s; the connection must be dropped and the mount made anew", ErrState, fmt.Sprintf(format, args...))
	}
	if len(b) < stateHead+4 || len(b) > stateMax || string(b[:8]) != stateMagic {
		return nil, nil, bad("%d bytes that are no such state", len(b))
	}
	if v := le.Uint32(b[8:]); v != stateVersion {
		return nil, nil, bad("version %d, this program knows %d", v, stateVersion)
	}
	n, m := uint64(le.Uint32(b[12:])), uint64(le.Uint32(b[16:]))
	if stateHead+n+m+4 != uint64(len(b)) {
		return nil, nil, bad("messages of %d and %d bytes in %d", n, m, len(b))
	}
	end := len(b) - 4
	if le.Uint32(b[end:]) != crc32.Checksum(b[:end], castagnoli) {
		return nil, nil, bad("its checksum does not fit")
	}
	request = append([]byte(nil), b[stateHead:stateHead+n]...)
	reply = append([]byte(nil), b[stateHead+n:end]...)
	if err := checkInit(request); err != nil {
		return nil, nil, bad("%v", err)
	}
	if err := checkReply(reply, request); err != nil {
		return nil, nil, bad("%v", err)
	}
	if w := maxWrite(reply); w > MaxWrite {
		return nil, nil, bad("writes of %d bytes were agreed on, this program reads %d", w, MaxWrite)
	}
	return request, reply, nil
}
