package queue

import (
	"bufio"
	"bytes"
	"context"
	"encoding/gob"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"bazil.org/fuse"
	"bazil.org/fuse/fs"
)

// powerFS is a file system in the memory of a child process that logs every operation,
// so that the test can make the disk of any moment: what was synced, and of the rest
// what it likes. It runs in a process of its own, since bbolt's mmap would block this
// one's threads on a server in this one. Making a directory commands it:
//
//	!failsync        the second fsync from now fails, and its unsynced bytes are gone
//	!eio=NAME=OFF    reads of NAME that touch byte OFF fail
//	other names      are marks in the log
type powerFS struct {
	mu       sync.Mutex
	log      *gob.Encoder
	files    map[string]*powerFile
	next     int
	failSync int
}

// powerOp is one operation in the log.
type powerOp struct {
	Kind     byte // w write, t truncate, s sync, c create, r rename, u unlink, d sync of the directory, m mark
	File     int
	Name, To string
	Off      int64
	Data     []byte
}

type powerFile struct {
	fs     *powerFS
	id     int
	inode  uint64
	data   []byte
	synced []byte
	eio    int64 // -1: none
}

const powerEnv = "QUEUE_POWER_SERVER"

// powerServer serves the file system at dir until it is unmounted.
func powerServer(dir, logPath string) error {
	f, err := os.Create(logPath)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	p := &powerFS{log: gob.NewEncoder(w), files: map[string]*powerFile{}}
	conn, err := fuse.Mount(dir, fuse.FSName("powerfs"), fuse.MaxReadahead(1<<20))
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	if err := fs.Serve(conn, p); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// startPower mounts a powerFS and returns a function that unmounts it and returns its log.
func startPower(t *testing.T) (dir string, stop func() []powerOp) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting the test's file system needs root")
	}
	dir = t.TempDir()
	logPath := t.TempDir() + "/log"
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), powerEnv+"="+dir+":"+logPath)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "mounted\n" {
		_ = cmd.Wait()
		t.Fatalf("mount the test's file system: %q %v", line, err)
	}
	stopped := false
	halt := func() {
		if stopped {
			return
		}
		stopped = true
		if err := fuse.Unmount(dir); err != nil {
			_ = syscall.Unmount(dir, syscall.MNT_DETACH)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the test's file system: %v", err)
		}
	}
	t.Cleanup(halt)
	return dir, func() []powerOp {
		halt()
		raw, err := os.ReadFile(logPath)
		if err != nil {
			t.Fatal(err)
		}
		var ops []powerOp
		for dec := gob.NewDecoder(bytes.NewReader(raw)); ; {
			var op powerOp
			if dec.Decode(&op) != nil {
				return ops
			}
			ops = append(ops, op)
		}
	}
}

func (p *powerFS) note(op powerOp) {
	if err := p.log.Encode(op); err != nil {
		panic(err)
	}
}

func (p *powerFS) Root() (fs.Node, error) { return powerDir{p}, nil }

type powerDir struct{ *powerFS }

func (d powerDir) Attr(_ context.Context, a *fuse.Attr) error {
	a.Inode, a.Mode = 1, os.ModeDir|0o700
	return nil
}

func (d powerDir) Lookup(_ context.Context, name string) (fs.Node, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.files[name]; f != nil {
		return f, nil
	}
	return nil, syscall.ENOENT
}

func (d powerDir) ReadDirAll(context.Context) (list []fuse.Dirent, _ error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, f := range d.files {
		list = append(list, fuse.Dirent{Name: name, Inode: f.inode, Type: fuse.DT_File})
	}
	return list, nil
}

func (d powerDir) Create(_ context.Context, req *fuse.CreateRequest, resp *fuse.CreateResponse) (fs.Node, fs.Handle, error) {
	resp.Flags |= fuse.OpenKeepCache
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next++
	f := &powerFile{fs: d.powerFS, id: d.next, inode: uint64(d.next) + 1, eio: -1}
	d.files[req.Name] = f
	d.note(powerOp{Kind: 'c', File: f.id, Name: req.Name})
	return f, f, nil
}

func (d powerDir) Remove(_ context.Context, req *fuse.RemoveRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, req.Name)
	d.note(powerOp{Kind: 'u', Name: req.Name})
	return nil
}

func (d powerDir) Rename(_ context.Context, req *fuse.RenameRequest, _ fs.Node) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files[req.NewName] = d.files[req.OldName]
	delete(d.files, req.OldName)
	d.note(powerOp{Kind: 'r', Name: req.OldName, To: req.NewName})
	return nil
}

// Mkdir takes a command or a mark; no directory comes of it.
func (d powerDir) Mkdir(_ context.Context, req *fuse.MkdirRequest) (fs.Node, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch parts := strings.Split(req.Name, "="); parts[0] {
	case "!failsync":
		d.failSync = 2
	case "!eio":
		off, err := strconv.ParseInt(parts[2], 10, 64)
		if err != nil || d.files[parts[1]] == nil {
			return nil, syscall.EINVAL
		}
		d.files[parts[1]].eio = off
	default:
		d.note(powerOp{Kind: 'm', Name: req.Name})
	}
	return nil, syscall.EEXIST
}

func (d powerDir) Fsync(context.Context, *fuse.FsyncRequest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note(powerOp{Kind: 'd'})
	return nil
}

func (f *powerFile) Attr(_ context.Context, a *fuse.Attr) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	a.Inode, a.Mode, a.Size, a.Nlink = f.inode, 0o600, uint64(len(f.data)), 1
	a.Blocks = a.Size / 512
	return nil
}

// Open keeps the kernel's page cache, as a disk's file system does.
func (f *powerFile) Open(_ context.Context, _ *fuse.OpenRequest, resp *fuse.OpenResponse) (fs.Handle, error) {
	resp.Flags |= fuse.OpenKeepCache
	return f, nil
}

func (f *powerFile) Read(_ context.Context, req *fuse.ReadRequest, resp *fuse.ReadResponse) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	from := min(req.Offset, int64(len(f.data)))
	to := min(from+int64(req.Size), int64(len(f.data)))
	if f.eio >= from && f.eio < to {
		return syscall.EIO
	}
	resp.Data = append(resp.Data[:0], f.data[from:to]...)
	return nil
}

func (f *powerFile) Write(_ context.Context, req *fuse.WriteRequest, resp *fuse.WriteResponse) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.data = overwrite(f.data, req.Offset, req.Data)
	f.fs.note(powerOp{Kind: 'w', File: f.id, Off: req.Offset, Data: append([]byte(nil), req.Data...)})
	resp.Size = len(req.Data)
	return nil
}

func overwrite(data []byte, off int64, b []byte) []byte {
	if end := off + int64(len(b)); end > int64(len(data)) {
		data = append(data, make([]byte, end-int64(len(data)))...)
	}
	copy(data[off:], b)
	return data
}

func (f *powerFile) Setattr(_ context.Context, req *fuse.SetattrRequest, _ *fuse.SetattrResponse) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if req.Valid.Size() {
		n := int64(req.Size)
		f.fs.note(powerOp{Kind: 't', File: f.id, Off: n})
		if n > int64(len(f.data)) {
			f.data = overwrite(f.data, n, nil)
		}
		f.data = f.data[:n]
	}
	return nil
}

func (f *powerFile) Fsync(context.Context, *fuse.FsyncRequest) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.fs.failSync-- // the one of the data passes, that of the meta page does not
	if f.fs.failSync == 0 {
		copy(f.data, make([]byte, len(f.data))) // the size stays, as on a disk's file system
		copy(f.data, f.synced)
		return syscall.EIO
	}
	f.synced = append(f.synced[:0], f.data...)
	f.fs.note(powerOp{Kind: 's', File: f.id})
	return nil
}

func (f *powerFile) Flush(context.Context, *fuse.FlushRequest) error { return nil }
