package holder

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// dyingMain is a worker without a holder that is being killed while it is asked for its
// connection: its sockets are closed, it has not ended. It ends with its standard input.
func dyingMain(dir string) int {
	l, err := listen(dir, workerSocket)
	if err != nil {
		fmt.Fprintln(os.Stderr, "dying:", err)
		return 1
	}
	fmt.Println("listens")
	c, err := l.AcceptUnix()
	if err != nil {
		fmt.Fprintln(os.Stderr, "dying:", err)
		return 1
	}
	_ = c.Close() // unread: the other end gets ECONNRESET
	_ = l.Close()
	fmt.Println("closed")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// TestAStartMetAWorkerThatWasBeingKilledAndGaveUp: it said "kill that process, then start again" of
// one that was killed, and a start right after the kill had ended with it.
func TestAStartMetAWorkerThatWasBeingKilledAndGaveUp(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), dyingTest+"="+dir), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer in.Close()
	says := bufio.NewScanner(out)
	says.Scan() // listens
	type result struct {
		a   *Adoption
		err error
	}
	done := make(chan result, 1)
	go func() {
		a, err := Adopt(dir)
		done <- result{a, err}
	}()
	if !says.Scan() || says.Text() != "closed" {
		t.Fatalf("it says %q", says.Text())
	}
	select {
	case r := <-done:
		t.Fatalf("while it ends: %v, %v", r.a, r.err)
	case <-time.After(100 * time.Millisecond):
	}
	_ = in.Close()
	if r := <-done; r.a != nil || r.err != nil {
		t.Fatalf("got %v, %v, want nobody to adopt", r.a, r.err)
	}
}
