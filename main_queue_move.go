package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"ftfuse/config"
	"ftfuse/internal/control"
	"ftfuse/internal/queuetool"
	"ftfuse/queue"
)

// terminal says whether w is one.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func queueCat(c *cli.Context, q roleQueue) error {
	r, err := q.export(c.Context, c.String("cursor"))
	if err != nil {
		return err
	}
	return errors.Join(queuetool.Cat(r, c.App.Writer, terminal(c.App.Writer)), r.Close())
}

func queueExport(c *cli.Context, q roleQueue) error {
	to := c.String("output")
	if to == "" && terminal(c.App.Writer) {
		return usagef("%s: standard output is a terminal; write it to a file with -o", commandName(c))
	}
	r, err := q.export(c.Context, c.String("cursor"))
	if err != nil {
		return err
	}
	var sum queue.Exported
	if to == "" {
		sum, err = copyExport(c.App.Writer, r)
	} else {
		sum, err = exportFile(to, r)
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	fmt.Fprintf(c.App.ErrWriter, "%s: exported %d batches, %d records, %d bytes of payload; they stay queued here\n", q.role, sum.Batches, sum.Records, sum.Payload)
	if sum.Unreadable > 0 {
		return fmt.Errorf("%w: %d batches cannot be read and are not in the export; `ftfuse queue verify` names them", errDamaged, sum.Unreadable)
	}
	return nil
}

// copyExport copies an export, and checks that it is whole.
func copyExport(w io.Writer, r io.Reader) (queue.Exported, error) {
	out := bufio.NewWriterSize(w, 256<<10)
	x, err := queue.NewExportReader(io.TeeReader(r, out))
	for err == nil {
		_, err = x.Next()
	}
	if err != io.EOF {
		return queue.Exported{}, errors.Join(err, out.Flush())
	}
	if err := out.Flush(); err != nil {
		return x.Total, fmt.Errorf("write the export: %w", err)
	}
	return x.Total, nil
}

// exportFile makes the file when the export is whole, and on the disk.
func exportFile(name string, r io.Reader) (sum queue.Exported, err error) {
	if _, err := os.Lstat(name); err == nil {
		return sum, fmt.Errorf("%s is there already: %w", name, os.ErrExist)
	}
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".part-*") // mode 0600
	if err != nil {
		return sum, fmt.Errorf("make the export: %w", err)
	}
	if sum, err = copyExport(f, r); err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return sum, errors.Join(fmt.Errorf("export to %s: %w", name, err), os.Remove(f.Name()))
	}
	if err := syncDir(filepath.Dir(name)); err != nil {
		return sum, fmt.Errorf("%s is whole, and may be gone after a power loss: %w", name, err)
	}
	return sum, nil
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

func queueImport(c *cli.Context, q roleQueue) error {
	in := io.Reader(os.Stdin)
	switch n := c.Args().Len(); {
	case n > 1:
		return usagef("%s: unexpected argument %q; options stand before FILE", commandName(c), c.Args().Get(1))
	case n == 1 && c.Args().First() != "-":
		f, err := os.Open(c.Args().First())
		if err != nil {
			return fmt.Errorf("open the export: %w", err)
		}
		defer f.Close()
		in = f
	}
	did, err := q.remote().Import(c.Context, in)
	if errors.Is(err, control.ErrNotRunning) {
		did, err = q.importStopped(c, in)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.App.Writer, "%s: imported %d batches, %d records, %d bytes of payload\n", q.role, did.Batches, did.Records, did.Payload)
	for _, id := range did.Conflicts {
		fmt.Fprintf(c.App.Writer, "  not taken: batch %s: this node took another content under that id\n", id)
	}
	switch {
	case did.Error != "":
		return errors.New(did.Error + "; to import the same export again does no harm")
	case len(did.Conflicts) > 0:
		return fmt.Errorf("%d batches were not taken", len(did.Conflicts))
	case did.Unreadable > 0:
		return fmt.Errorf("all of the export was taken; %d batches of that queue could not be read and were not in it", did.Unreadable)
	}
	return nil
}

// importStopped appends to the files of a stopped role, for the cursors that they have.
func (q roleQueue) importStopped(c *cli.Context, in io.Reader) (queuetool.Result, error) {
	if q.role == config.RoleReceive {
		return queuetool.Result{}, errors.New("a receiver decides where every byte goes as it takes it: start the role, then import")
	}
	var cursors []string
	if err := q.view(func(v *queue.View) error {
		for _, s := range v.Stats().Cursors {
			cursors = append(cursors, s.Name)
		}
		return nil
	}); err != nil {
		return queuetool.Result{}, err
	}
	// Nobody drains it now: max_bytes is the role's affair when it starts.
	relay := q.role == config.RoleRelay
	to, err := queue.Open(q.dir, queue.Options{
		Cursors: cursors, MaxBytes: math.MaxInt64 / 2, Dedupe: relay, OneHost: relay && q.cfg.TLS.Enabled(),
	})
	if err != nil {
		return queuetool.Result{}, inUse(err)
	}
	ctx, cancel := context.WithCancelCause(c.Context)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		stopOnFullDisk(ctx, to, cancel)
	}()
	did, err := to.Import(ctx, in)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	cancel(nil)
	<-ended
	return queuetool.NewResult(did, errors.Join(err, to.Close())), nil
}

// errDiskFull ends an import into the files of a stopped role.
var errDiskFull = errors.New("the disk is full")

// stopOnFullDisk cancels ctx when q waits for room on the disk, which nobody makes.
func stopOnFullDisk(ctx context.Context, q *queue.Queue, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if q.Stats().DiskFull {
				cancel(errDiskFull)
				return
			}
		}
	}
}
