package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"ftfuse/internal/status"
)

// ErrNotRunning is returned where nobody answers: the role does not run, or runs with
// another state_dir.
var ErrNotRunning = errors.New("the role does not answer: it is not running, or runs with another state_dir")

// Client returns an HTTP client whose requests go to the role of dir, whatever host their
// URL names; write "http://role/PATH". Do's error is ErrNotRunning where there is no role.
// It sets no time limit: contexts do.
func Client(dir string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			name, release, err := shortened(SocketPath(dir))
			if err != nil {
				return nil, notRunning(err)
			}
			defer release()
			conn, err := new(net.Dialer).DialContext(ctx, "unix", name)
			if err != nil {
				return nil, notRunning(err)
			}
			return conn, nil
		},
	}}
}

// notRunning makes ErrNotRunning of what connect(2) says where nobody listens.
func notRunning(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w (%w)", ErrNotRunning, err)
	}
	return err
}

// statusTimeout is how long a role may take to say how it is.
const statusTimeout = 5 * time.Second

// Status asks the role of dir. raw is its answer as it came, which has all that a newer
// version may say.
func Status(ctx context.Context, dir string) (r status.Role, raw json.RawMessage, err error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://role/status", nil)
	if err != nil {
		return r, nil, err
	}
	resp, err := Client(dir).Do(req)
	switch {
	case errors.Is(err, ErrNotRunning):
		return r, nil, ErrNotRunning
	case errors.Is(err, context.DeadlineExceeded):
		return r, nil, fmt.Errorf("the role does not answer within %v: it is stuck, or stopped by a debugger", statusTimeout)
	case err != nil:
		return r, nil, fmt.Errorf("ask the role: %w", err)
	}
	defer resp.Body.Close()
	if raw, err = io.ReadAll(io.LimitReader(resp.Body, maxStatus+1)); err != nil {
		return r, nil, fmt.Errorf("read the answer of the role: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return r, nil, fmt.Errorf("the role answers %s: %s", resp.Status, strings.TrimSpace(string(raw[:min(len(raw), 500)])))
	}
	if len(raw) > maxStatus {
		return r, nil, fmt.Errorf("the answer of the role is longer than %d bytes", maxStatus)
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, nil, fmt.Errorf("the answer of the role is not its status: %w", err)
	}
	return r, raw, nil
}

// maxStatus is more than a role with all its peers and destinations has to say.
const maxStatus = 64 << 20
