package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const k2hftSlave = `[GLOBAL]
GROUP = COLO
PORT = 8020
[SVRNODE]
NAME = localhost
[K2HFTFUSE]
K2HTYPE = mem
[K2HFTFUSE_RULE_DIR]
TARGET = log
TRUNS = on
DEFAULTALL = ALLOW
`

// What `ftfuse convert` writes passes `ftfuse check`, from a file, standard input and a
// JSON string.
func TestWhatConvertWritesPassesCheck(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "k2hftfuse.ini")
	if err := os.WriteFile(in, []byte(k2hftSlave), 0o600); err != nil {
		t.Fatal(err)
	}
	fstab := filepath.Join(dir, "fstab")
	if err := os.WriteFile(fstab, []byte("k2hftfuse "+dir+"/mnt fuse allow_other,conf="+in+" 0 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"ini":  {"--fstab", fstab, in},
		"json": {"--point", dir + "/mnt", "--json", `{ 'GLOBAL': { 'PORT': '8020' }, 'SVRNODE': [ { 'NAME': 'localhost' } ], 'K2HFTFUSE': { 'K2HFTFUSE_RULE': [ { 'TARGET': 'a', 'TRUNS': 'on', 'DEFAULTALL': 'ALLOW' } ] } }`},
		"svr":  {`{ "GLOBAL": { "PORT": 8020 }, "K2HFTFUSESVR": { "FILE_BASEDIR": "/data/logs" } }`},
	} {
		out := filepath.Join(dir, name+".toml")
		var stdout, stderr bytes.Buffer
		if code := run(append([]string{"ftfuse", "convert", "-o", out}, args...), &stdout, &stderr); code != exitOK {
			t.Fatalf("%s: exit %d: %s", name, code, &stderr)
		}
		if code := run([]string{"ftfuse", "check", "-c", out}, &stdout, &stderr); code != exitOK {
			text, _ := os.ReadFile(out)
			t.Errorf("%s: check: exit %d: %s\n%s", name, code, &stderr, text)
		}
		if name == "ini" && !strings.Contains(stdout.String(), "mount: good") {
			t.Errorf("check said: %s", &stdout)
		}
		if code := run(append([]string{"ftfuse", "convert", "-o", out}, args...), &stdout, &stderr); code != exitRuntime {
			t.Errorf("%s: a file that is there was written over: exit %d", name, code)
		}
	}
}

func TestConvertSaysWhatIsWrong(t *testing.T) {
	endless := filepath.Join(t.TempDir(), "endless.ini")
	if err := os.WriteFile(endless, []byte("[K2HFTFUSE]\nINCLUDE = /dev/zero\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, exitUsage, "FILE is missing"},
		{[]string{"a", "b"}, exitUsage, "one FILE"},
		{[]string{"/none.ini"}, exitRuntime, "/none.ini"},
		{[]string{"/dev/zero"}, exitRuntime, "/dev/zero is larger"}, // it was read until the memory was full
		{[]string{endless}, exitRuntime, "/dev/zero is larger"},
		{[]string{"--json", "{}"}, exitRuntime, "has neither"},
		{[]string{"--fstab", "/none", "--json", "{ K2HFTFUSE: {} }"}, exitRuntime, "/none"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(append([]string{"ftfuse", "convert"}, c.args...), &stdout, &stderr); code != c.code || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("%q: exit %d: %s", c.args, code, &stderr)
		}
	}
}
