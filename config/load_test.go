package config

import "testing"

func TestDefaultsOfAnEmptyFile(t *testing.T) {
	c, err := Parse("a.toml", []byte("host = \"h\"\n[mount]\n[[mount.forward]]\nprimary = [\"127.0.0.1:7401\"]\n[receive]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Mount.Queue.MaxBytes != 8*GiB || len(c.Receive.Outputs) != 1 || c.Mount.Forwards[0].Window != 64*MiB {
		t.Fatalf("got %+v %+v", c.Mount, c.Receive)
	}
}
