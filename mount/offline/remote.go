package offline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"ftfuse/mount/capture"
)

// Handler answers below /send/ for a running mount:
//
//	POST /send/begin                          beginning, answers Begun; JSON
//	POST /send/data?id=N&off=N&by=P,U,G,T     at most MaxData bytes
//	POST /send/end?id=N
//
// An error is a text; 422 says that the request itself cannot be, 503 that it is to begin again.
func Handler(t Target) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /send/begin", func(w http.ResponseWriter, q *http.Request) {
		var r beginning
		err := json.NewDecoder(io.LimitReader(q.Body, 1<<20)).Decode(&r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		b, err := t.Begin(q.Context(), r.request())
		answer(w, b, err)
	})
	mux.HandleFunc("POST /send/data", func(w http.ResponseWriter, q *http.Request) {
		var by capture.Fed
		id, err := strconv.ParseUint(q.FormValue("id"), 10, 64)
		off, err2 := strconv.ParseInt(q.FormValue("off"), 10, 64)
		_, err3 := fmt.Sscanf(q.FormValue("by"), "%d,%d,%d,%d", &by.PID, &by.UID, &by.GID, &by.Time)
		if err := errors.Join(err, err2, err3); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		// A body that is cut short is not taken: its sender has gone, or hands it over again.
		data, err := io.ReadAll(http.MaxBytesReader(w, q.Body, MaxData))
		if err == nil {
			err = t.Data(q.Context(), id, off, data, by)
		}
		answer(w, struct{}{}, err)
	})
	mux.HandleFunc("POST /send/end", func(w http.ResponseWriter, q *http.Request) {
		id, err := strconv.ParseUint(q.FormValue("id"), 10, 64)
		if err == nil {
			err = t.End(q.Context(), id)
		}
		answer(w, struct{}{}, err)
	})
	return mux
}

// beginning is a Request as it travels.
type beginning struct {
	Request
	RawPath []byte `json:",omitempty"` // Path where that is not UTF-8, which is all that JSON holds
	RawName []byte `json:",omitempty"` // and Name
}

func beginningOf(r Request) beginning {
	b := beginning{Request: r}
	if !utf8.ValidString(r.Path) {
		b.RawPath = []byte(r.Path)
	}
	if !utf8.ValidString(r.Name) {
		b.RawName = []byte(r.Name)
	}
	return b
}

func (b *beginning) request() Request {
	r := b.Request
	if b.RawPath != nil {
		r.Path = string(b.RawPath)
	}
	if b.RawName != nil {
		r.Name = string(b.RawName)
	}
	return r
}

func answer(w http.ResponseWriter, v any, err error) {
	switch {
	case errors.Is(err, ErrPath):
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
	case errors.Is(err, capture.ErrStopped), errors.Is(err, capture.ErrNoSource), errors.Is(err, capture.ErrAhead), errors.Is(err, context.Canceled):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // whoever asked has gone
	}
}

// Remote is the Target of a running mount, through an HTTP client whose requests go to it
// whatever host they name.
type Remote struct{ Client *http.Client }

var _ Target = Remote{}

// ErrRefused is wrapped by what a running mount answers instead of what was asked for; other
// errors mean that it was not reached, or went away.
var ErrRefused = errors.New("the mount answers")

// Begin asks the mount.
func (r Remote) Begin(ctx context.Context, q Request) (b Begun, err error) {
	text, err := json.Marshal(beginningOf(q))
	if err != nil {
		return b, err
	}
	return b, r.ask(ctx, "/send/begin", text, &b)
}

// Data hands bytes over to the mount.
func (r Remote) Data(ctx context.Context, id uint64, off int64, data []byte, by capture.Fed) error {
	return r.ask(ctx, fmt.Sprintf("/send/data?id=%d&off=%d&by=%d,%d,%d,%d", id, off, by.PID, by.UID, by.GID, by.Time), data, nil)
}

// End tells the mount.
func (r Remote) End(ctx context.Context, id uint64) error {
	return r.ask(ctx, fmt.Sprintf("/send/end?id=%d", id), nil, nil)
}

func (r Remote) ask(ctx context.Context, path string, body []byte, v any) error {
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://role"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := r.Client.Do(q)
	if err != nil {
		return fmt.Errorf("ask the mount: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	switch {
	case err != nil:
		return fmt.Errorf("read the answer of the mount: %w", err)
	case resp.StatusCode == http.StatusUnprocessableEntity:
		return fmt.Errorf("%w: %w: %s", ErrRefused, ErrPath, strings.TrimPrefix(strings.TrimSpace(string(text)), ErrPath.Error()+": "))
	case resp.StatusCode == http.StatusServiceUnavailable:
		return fmt.Errorf("the mount stopped: %s", strings.TrimSpace(string(text)))
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%w %s: %s", ErrRefused, resp.Status, strings.TrimSpace(string(text)))
	case v == nil:
		return nil
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("read the answer of the mount: %w", err)
	}
	return nil
}
