package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"ftfuse/bench/rig"
	"ftfuse/bench/tally"
)

// shipper is another program that carries lines, measured for comparison: one process of it
// follows a plain file and sends what is new over TCP, a second one writes what it gets to a
// file. Both run with their queues in memory, which is what they are fast with.
type shipper struct {
	name string
	bin  string // name or path of the program
	// configs are the sender's and the receiver's configuration.
	configs func(s shipping) (send, receive string)
	// args start a process in the foreground with the configuration conf; all else that it
	// keeps is in dir.
	args func(conf, dir string) []string
}

// shipping is one run of a shipper.
type shipping struct {
	dir        string // of the process
	in, out    string
	host, port string
}

// shippers are those that bench knows. Each configuration is the shortest way for a line's
// bytes from a file to a file that the program's manual has; limits for the length of a line
// are raised to 256 KiB, nothing may be dropped, and no field is parsed or added.
var shippers = []shipper{
	{
		name: "fluent-bit", bin: "fluent-bit",
		configs: fluentBit,
		args:    func(conf, _ string) []string { return []string{"-q", "-c", conf} },
	},
	{
		name: "rsyslog", bin: "rsyslogd",
		configs: rsyslog,
		args: func(conf, dir string) []string {
			return []string{"-n", "-i", filepath.Join(dir, "pid"), "-f", conf}
		},
	},
	{
		name: "syslog-ng", bin: "syslog-ng",
		configs: syslogNG,
		args: func(conf, dir string) []string {
			in := func(name string) string { return filepath.Join(dir, name) }
			return []string{"-F", "--no-caps", "-f", conf, "-R", in("persist"), "-p", in("pid"), "-c", in("ctl")}
		},
	},
}

func fluentBit(s shipping) (send, receive string) {
	send = fmt.Sprintf(`[SERVICE]
    flush 0.1
    log_level error
[INPUT]
    name tail
    path %s
    tag t
    read_from_head true
    buffer_chunk_size 512k
    buffer_max_size 1m
[OUTPUT]
    name forward
    match *
    host %s
    port %s
`, s.in, s.host, s.port)
	receive = fmt.Sprintf(`[SERVICE]
    flush 0.1
    log_level error
[INPUT]
    name forward
    listen %s
    port %s
    buffer_chunk_size 1m
    buffer_max_size 16m
[OUTPUT]
    name file
    match *
    path %s
    file %s
    format template
    template {log}
`, s.host, s.port, filepath.Dir(s.out), filepath.Base(s.out))
	return send, receive
}

func rsyslog(s shipping) (send, receive string) {
	const head = "global(workDirectory=%q maxMessageSize=\"256k\" parser.escapeControlCharactersOnReceive=\"off\")\n"
	const queue = `queue.type="LinkedList" queue.size="200000" queue.dequeueBatchSize="4096"`
	send = fmt.Sprintf(head+`module(load="imfile" mode="inotify")
template(name="raw" type="string" string="%%msg%%\n")
input(type="imfile" File=%q Tag="t" ruleset="out")
ruleset(name="out" `+queue+`) { action(type="omfwd" target=%q port=%q protocol="tcp" template="raw") }
`, s.dir, s.in, s.host, s.port)
	// Octet-counted framing off: or a line that begins with a digit is taken for a length.
	receive = fmt.Sprintf(head+`module(load="imtcp")
template(name="raw" type="string" string="%%rawmsg%%\n")
input(type="imtcp" address=%q port=%q ruleset="file" SupportOctetCountedFraming="off")
ruleset(name="file" `+queue+`) { action(type="omfile" file=%q template="raw" ioBufferSize="256k" flushOnTXEnd="on") }
`, s.dir, s.host, s.port, s.out)
	return send, receive
}

func syslogNG(s shipping) (send, receive string) {
	const head = `@version: 3.38
options { log-msg-size(262144); use-dns(no); dns-cache(no); flush-lines(1000); stats-freq(0); };
`
	const fetch = `flags(no-parse) log-fetch-limit(1000) log-iw-size(100000)`
	send = fmt.Sprintf(head+`source in { file(%q follow-freq(0.01) `+fetch+`); };
destination net { network(%q port(%s) transport("tcp") template("$MSG\n")); };
log { source(in); destination(net); flags(flow-control); };
`, s.in, s.host, s.port)
	receive = fmt.Sprintf(head+`source net { network(ip(%q) port(%s) transport("tcp") `+fetch+`); };
destination out { file(%q template("$MSG\n")); };
log { source(net); destination(out); flags(flow-control); };
`, s.host, s.port, s.out)
	return send, receive
}

// parseShippers reads NAME or NAME=PROGRAM, with commas between.
func parseShippers(list string) ([]shipper, error) {
	if list == "" {
		return nil, nil
	}
	var out []shipper
	for item := range strings.SplitSeq(list, ",") {
		name, bin, given := strings.Cut(strings.TrimSpace(item), "=")
		i := slices.IndexFunc(shippers, func(s shipper) bool { return s.name == name })
		if i < 0 {
			var known []string
			for _, s := range shippers {
				known = append(known, s.name)
			}
			return nil, fmt.Errorf("%q, want some of %s, each as NAME or NAME=PROGRAM", item, strings.Join(known, ", "))
		}
		s := shippers[i]
		if given {
			s.bin = bin
		}
		path, err := exec.LookPath(s.bin)
		if err != nil {
			return nil, fmt.Errorf("find %s (install it, or say %s=PROGRAM): %w", s.name, s.name, err)
		}
		s.bin = path
		out = append(out, s)
	}
	return out, nil
}

// ship is the writers on a plain file that s carries to another one.
func (b *bench) ship(s shipper, p tally.Plan, mode string) (_ *Rate, err error) {
	dir := filepath.Join(b.dir, s.name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make a folder for %s: %w", s.name, err)
	}
	defer os.RemoveAll(dir)
	in, out := filepath.Join(dir, "in.log"), filepath.Join(dir, "out.log")
	if err := os.WriteFile(in, nil, 0o644); err != nil {
		return nil, fmt.Errorf("make the file that %s follows: %w", s.name, err)
	}
	sender, receiver, err := b.startShipper(s, dir, in, out)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sender.end(), receiver.end()) }()
	began := time.Now()
	writing, err := b.write(p, mode, in, func() { began = time.Now() })
	if err != nil {
		return nil, err
	}
	const still = 20 * time.Second
	_, err = rig.WaitSize(b.ctx, out, p.Bytes(), time.Millisecond, still)
	all := time.Since(began)
	switch {
	case errors.Is(err, rig.ErrStill):
		all -= still // what is missing is lost: the count says so
	case err != nil:
		return nil, fmt.Errorf("wait for %s: %w%s%s", s.name, err, sender.log(), receiver.log())
	}
	r := rate(p, writing, all, groupCPU(sender.cmd.Process.Pid)+groupCPU(receiver.cmd.Process.Pid))
	count, err := checkFile(out, p)
	if err != nil {
		return nil, err
	}
	r.Count = &count
	return r, nil
}

// startShipper starts the receiver, then the sender, and waits until each is at work: the one
// listens, the other has its input open.
func (b *bench) startShipper(s shipper, dir, in, out string) (sender, receiver *shipperProcess, err error) {
	addr, err := rig.FreeAddr()
	if err != nil {
		return nil, nil, err
	}
	run := shipping{in: in, out: out}
	if run.host, run.port, err = net.SplitHostPort(addr); err != nil {
		return nil, nil, fmt.Errorf("split %s: %w", addr, err)
	}
	run.dir = filepath.Join(dir, "receive")
	_, conf := s.configs(run)
	if receiver, err = startShipperProcess(s, run.dir, conf); err != nil {
		return nil, nil, err
	}
	if err := waitListening(b.ctx, run.port); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start %s: %w%s", s.name, err, receiver.log()), receiver.end())
	}
	run.dir = filepath.Join(dir, "send")
	conf, _ = s.configs(run)
	if sender, err = startShipperProcess(s, run.dir, conf); err != nil {
		return nil, nil, errors.Join(err, receiver.end())
	}
	if err := waitOpen(b.ctx, sender.cmd.Process.Pid, in); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start %s: %w%s", s.name, err, sender.log()), sender.end(), receiver.end())
	}
	return sender, receiver, nil
}

// shipperProcess is one running process of a shipper, in a process group of its own.
type shipperProcess struct {
	cmd *exec.Cmd
	out *os.File // its stdout and stderr
}

func startShipperProcess(s shipper, dir, conf string) (*shipperProcess, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make a folder for %s: %w", s.name, err)
	}
	path := filepath.Join(dir, "conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		return nil, fmt.Errorf("write the configuration of %s: %w", s.name, err)
	}
	out, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, fmt.Errorf("make a log for %s: %w", s.name, err)
	}
	cmd := exec.Command(s.bin, s.args(path, dir)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", s.name, err), out.Close())
	}
	return &shipperProcess{cmd: cmd, out: out}, nil
}

// end kills the process: what it should carry has been carried, or never will be.
func (p *shipperProcess) end() error {
	endGroup(p.cmd)
	return p.out.Close()
}

// log is the beginning of what the process said, for an error.
func (p *shipperProcess) log() string {
	text := make([]byte, 1000)
	n, _ := p.out.ReadAt(text, 0) // shorter: all of it
	return "\n" + string(text[:n])
}

// waitOpen waits until process pid has the file at path open.
func waitOpen(ctx context.Context, pid int, path string) error {
	return waitUntil(ctx, fmt.Sprintf("process %d has %s open", pid, path), func() (bool, error) {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		return slices.ContainsFunc(links, func(link string) bool {
			to, err := os.Readlink(link)
			return err == nil && to == path // else it is closed by now
		}), err
	})
}
