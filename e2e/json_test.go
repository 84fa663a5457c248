package e2e

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"ftfuse/bench/rig"
)

// jsonLine is an object of format = "json".
type jsonLine struct {
	Time, Host, Path, File, Seq string
	TimeNS                      int64 `json:"time_ns"`
	PID, UID, GID               *uint32
	Exe, Cgroup                 string
	Flags                       []string
	Data                        *string
	Base64                      []byte `json:"data_base64"`
	PathBase64                  string `json:"path_base64"`
}

// objects reads a file of objects, and returns what they hold of each file of the mount, with
// the line ends that follow the objects; a piece of a long line has none. No number is there
// twice.
func objects(t *testing.T, path string) (all []jsonLine, held map[string]string) {
	t.Helper()
	held = map[string]string{}
	seen := map[string]bool{}
	for line := range strings.Lines(string(read(t, path))) {
		var o jsonLine
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("%v: %.300q", err, line)
		}
		if seen[o.Seq] {
			t.Fatalf("%s stands twice", o.Seq)
		}
		seen[o.Seq] = true
		all = append(all, o)
		name, data := o.Path, string(o.Base64)
		if o.PathBase64 != "" {
			b, err := base64.StdEncoding.DecodeString(o.PathBase64)
			must(t, err)
			name = string(b)
		}
		if o.Data != nil {
			data = *o.Data
		}
		if !slices.Contains(o.Flags, "first-piece") && !slices.Contains(o.Flags, "middle-piece") && !slices.Contains(o.Flags, "unterminated") {
			data += line[strings.LastIndexByte(line, '}')+1:]
		}
		held[name] += data
	}
	return all, held
}

// TestJSONObjectsHoldWhatWasWritten, byte by byte, with the attributes of the writer, whatever
// the bytes, the lines' length and the file's name.
func TestJSONObjectsHoldWhatWasWritten(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		p.Outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\n[[receive.output]]\ndir = %q\nfile = \"all.json\"\nformat = \"json\"\n", p.OutDir(), p.OutDir())
		c.start(t, p)
		want := map[string]string{
			"a.log":         "plain\nwith \"quotes\" and \\\nCRLF\r\n\x00NUL \x1b[31m\n\u2028 caf\u00e9\n\xff\xfe not UTF-8\n\n\r\nno end",
			"long.log":      strings.Repeat("0123456789abcde\t", 200<<10) + "\nshort\n",
			"bad\xffna.log": "of a file whose name is not UTF-8\n",
		}
		total := 0
		for name, text := range want {
			must(t, os.WriteFile(p.In(name), []byte(text), 0o644))
			total += len(text)
		}
		for name, text := range want {
			arrives(t, p.Out(name), []byte(text))
		}
		stop(t, p)
		all, held := objects(t, p.OutDir()+"/all.json")
		for name, text := range want {
			if held[name] != text {
				t.Errorf("%q: the objects hold %d bytes, want %d%s", name, len(held[name]), len(text), difference([]byte(held[name]), []byte(text)))
			}
		}
		for _, o := range all {
			if o.Host != p.Host || o.PID == nil || *o.PID == 0 || o.UID == nil || *o.UID != 0 || o.GID == nil || o.TimeNS == 0 || len(o.Time) < 30 {
				t.Fatalf("an object has not all attributes: %+v", o)
			}
		}
	}, "open", "write")
}

// TestJSONObjectsStandOnceOverKills of the receiver.
func TestJSONObjectsStandOnceOverKills(t *testing.T) {
	p := newPair(t)
	p.Outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\nfile = \"all.json\"\nformat = \"json\"\n", p.OutDir())
	start(t, p)
	f, err := os.Create(p.In("a.log"))
	must(t, err)
	var want bytes.Buffer
	for kill := range 4 {
		for i := range 5000 {
			line := fmt.Appendf(nil, "line %d of %d \xff\n", i, kill)
			want.Write(line)
			_, err := f.Write(line)
			must(t, err)
		}
		grows(t, p.OutDir()+"/all.json", 1)
		must(t, p.ReceiveRole.Kill())
		startReceive(t, p)
	}
	must(t, f.Close())
	eventually(t, patience, func() error {
		if n := bytes.Count(read(t, p.OutDir()+"/all.json"), []byte("}\n")); n < 20000 {
			return fmt.Errorf("%d objects of 20000", n)
		}
		return nil
	})
	stop(t, p)
	if _, held := objects(t, p.OutDir()+"/all.json"); held["a.log"] != want.String() {
		t.Errorf("the objects hold %d bytes, want %d%s", len(held["a.log"]), want.Len(), difference([]byte(held["a.log"]), want.Bytes()))
	}
}

// TestProgramAndControlGroupStandInFormatsAndObjects, where the rule asks for them, and a dash
// or nothing where it does not.
func TestProgramAndControlGroupStandInFormatsAndObjects(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		p.Rules = fmt.Sprintf("[[mount.rule]]\npath = \"asked.log\"\nattribution = %q\nattributes = [\"exe\", \"cgroup\"]\n", c.attribution)
		p.Outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\nfile = \"all\"\nformat = \"%%F %%E %%C %%L\"\n[[receive.output]]\ndir = %q\nfile = \"all.json\"\nformat = \"json\"\n", p.OutDir(), p.OutDir())
		c.start(t, p)
		self, err := os.Executable()
		must(t, err)
		group, err := os.ReadFile("/proc/self/cgroup")
		must(t, err)
		for _, name := range []string{"asked.log", "other.log"} {
			must(t, os.WriteFile(p.In(name), []byte("line\n"), 0o644)) // this process stays
		}
		var lines []string
		eventually(t, patience, func() error {
			if lines = slices.Sorted(strings.Lines(string(read(t, p.OutDir()+"/all")))); len(lines) < 2 {
				return fmt.Errorf("%d lines", len(lines))
			}
			return nil
		})
		stop(t, p)
		f := strings.Fields(lines[0])
		if len(f) != 4 || f[0] != "asked.log" || f[1] != self || !strings.Contains(string(group), ":"+f[2]+"\n") || lines[1] != "other.log - - line\n" {
			t.Errorf("the lines are %q; the program is %s, its control groups are %q", lines, self, group)
		}
		all, _ := objects(t, p.OutDir()+"/all.json")
		for _, o := range all {
			if asked := o.Path == "asked.log"; asked != (o.Exe == self) || asked != (o.Cgroup != "" && o.Cgroup == f[2]) {
				t.Errorf("the object %+v", o)
			}
		}
	}, "open", "write")
}

// TestJSONObjectsSayWhoOpenedTheFile where the kernel writes: pid, uid and gid of the newest opener,
// that they are an opener's, that there were several, and the time of the capture, as %P, %U, %G
// and %T do.
func TestJSONObjectsSayWhoOpenedTheFile(t *testing.T) {
	eachCapture(t, func(t *testing.T, c capture, p *rig.Pair) {
		p.Outputs = fmt.Sprintf("[[receive.output]]\ndir = %q\nfile = \"all.json\"\nformat = \"json\"\n[[receive.output]]\ndir = %q\nfile = \"all\"\ntime = \"%%s%%-\"\nformat = \"%%P %%U %%G %%T\"\n", p.OutDir(), p.OutDir())
		c.start(t, p)
		lines := func(name string, want int) {
			eventually(t, patience, func() error {
				if n := bytes.Count(read(t, p.OutDir()+"/"+name), []byte("\n")); n < want {
					return fmt.Errorf("%s has %d lines of %d", name, n, want)
				}
				return nil
			})
		}
		var pids []int
		var opened, wrote []int64
		var ends []func() error
		for i := range 2 {
			cmd := exec.Command("sh", "-c", `exec 3>>"$1"; echo; read line; echo "$line" >&3; echo; read line; exit 0`, "sh", p.In("a.log"))
			in, err := cmd.StdinPipe()
			must(t, err)
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			said := bufio.NewReader(out)
			_, err = said.ReadString('\n') // it has opened the file
			must(t, err)
			opened = append(opened, time.Now().UnixNano())
			_, err = fmt.Fprintf(in, "line %d\n", i)
			must(t, err)
			_, err = said.ReadString('\n')
			must(t, err)
			lines("all.json", i+1)
			wrote = append(wrote, time.Now().UnixNano())
			pids = append(pids, cmd.Process.Pid)
			ends = append(ends, func() error { in.Close(); return cmd.Wait() })
		}
		for _, end := range ends {
			must(t, end())
		}
		lines("all", 2)
		stop(t, p)
		all, _ := objects(t, p.OutDir()+"/all.json")
		formatted := strings.Split(string(read(t, p.OutDir()+"/all")), "\n")
		if len(all) != 2 {
			t.Fatalf("%d objects", len(all))
		}
		for i, o := range all {
			flags := []string{"opener", "several"}[:i+1]
			if *o.Data != fmt.Sprint("line ", i) || int(*o.PID) != pids[i] || *o.UID != 0 || *o.GID != 0 || !slices.Equal(o.Flags, flags) || o.TimeNS < opened[i] || o.TimeNS > wrote[i] {
				t.Errorf("object %d is %+v of %q by %d, want pid %d, %v and a time of %d to %d", i, o, *o.Data, *o.PID, pids[i], flags, opened[i], wrote[i])
			}
			if want := fmt.Sprintf("%d 0 0 %d", pids[i], o.TimeNS); formatted[i] != want {
				t.Errorf("the line %q, want %q", formatted[i], want)
			}
		}
	}, "open")
}
