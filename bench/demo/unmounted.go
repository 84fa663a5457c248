package demo

import (
	"fmt"
	"time"

	"ftfuse/bench/rig"
)

// unmounted shows what becomes of lines that are written while nothing is mounted, by a
// program that goes on with its file when the mount is back.
func (d *demo) unmounted() error {
	d.head("The mount is stopped, and a program writes below the mount point all the same")
	if err := d.pair.MountRole.Stop(rig.StopIn); err != nil {
		return err
	}
	p := &program{
		file: "unmounted.log", lines: 1000,
		what: `i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo "unmounted line $i"; sleep 0.001; done >>"$1"`,
	}
	path := d.pair.In(p.file)
	if err := p.start(path); err != nil {
		return err
	}
	defer p.kill()
	if _, err := rig.WaitSize(d.ctx, path, 4000, 5*time.Millisecond, 20*time.Second); err != nil {
		return err
	}
	d.say("   $ kill %d          # ftfuse mount; umount would do as well\n   $ %s", d.pair.MountRole.PID(), `… done >>…/mnt/unmounted.log`)
	d.say("   %d bytes of it lie on the local disk, and nobody has them at the aggregator (%d there).", sizeOf(path), sizeOf(d.pair.Out(p.file)))
	if err := d.pair.StartMount(d.ctx); err != nil {
		return fmt.Errorf("start the mount again: %w", err)
	}
	d.say("   $ ftfuse mount -c mount.toml &          # process %d; the program still writes to the file below", d.pair.MountRole.PID())
	if err := p.wait(); err != nil {
		return err
	}
	want := int64(0)
	for i := 1; i <= p.lines; i++ {
		want += int64(len(fmt.Sprintf("unmounted line %d\n", i)))
	}
	if _, err := rig.WaitSize(d.ctx, d.pair.Out(p.file), want, time.Millisecond, 20*time.Second); err != nil {
		return err
	}
	c, err := count(d.pair.Out(p.file), p.lines)
	if err != nil {
		return err
	}
	if c != (counted{lines: p.lines}) {
		return fmt.Errorf("%w: of %d lines that were written while nothing was mounted %+v", ErrProof, p.lines, c)
	}
	d.say("   All %d lines arrived, once and in order: those from before the mount, and those since.", p.lines)
	return nil
}
