package queuetool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// ErrRefused is wrapped by what a running role answers instead of what was asked for.
var ErrRefused = errors.New("the role answers")

// Remote asks the Handler of a running role, through an HTTP client whose requests go to
// the role whatever host they name.
type Remote struct{ Client *http.Client }

// List is the role's Listing.
func (r Remote) List(ctx context.Context) (*Listing, error) {
	l := new(Listing)
	return l, r.document(ctx, http.MethodGet, "/queue/ls", nil, l)
}

// Verify has the role read all of its queue.
func (r Remote) Verify(ctx context.Context) (*Verified, error) {
	v := new(Verified)
	return v, r.document(ctx, http.MethodGet, "/queue/verify", nil, v)
}

// Export returns the role's export as a stream. The caller closes it.
func (r Remote) Export(ctx context.Context, cursor string) (io.ReadCloser, error) {
	resp, err := r.do(ctx, http.MethodGet, "/queue/export?"+url.Values{"cursor": {cursor}}.Encode(), nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Import sends an export to the role. Where no role answers nothing of it was read.
func (r Remote) Import(ctx context.Context, export io.Reader) (Result, error) {
	var did Result
	return did, r.document(ctx, http.MethodPost, "/queue/import", io.NopCloser(export), &did)
}

func (r Remote) document(ctx context.Context, method, path string, body io.Reader, v any) error {
	resp, err := r.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("read what the role answers to %s: %w", path, err)
	}
	return nil
}

func (r Remote) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://role"+path, body)
	if err != nil {
		return nil, fmt.Errorf("ask the role: %w", err)
	}
	resp, err := r.Client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the role for %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, fmt.Errorf("%w %s to %s: %s", ErrRefused, resp.Status, path, strings.TrimSpace(string(text)))
	}
	return resp, nil
}
