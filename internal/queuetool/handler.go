package queuetool

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"ftfuse/queue"
)

// Running is the queue of a running role.
type Running interface {
	Source
	Verify(ctx context.Context) (queue.Report, error)
}

var _ Running = (*queue.Queue)(nil)

// Importer takes an export: Queue.Import, or what else a role does with the batches.
type Importer func(ctx context.Context, r io.Reader) (queue.Imported, error)

// Handler answers below /queue/ for a running role:
//
//	GET  /queue/ls                    Listing, JSON
//	GET  /queue/verify                Verified, JSON
//	GET  /queue/export[?cursor=NAME]  an export; cut short where it fails
//	POST /queue/import                takes an export, answers Result, JSON
//
// An error before the answer began is a text with a status of 400 or more. imp may be nil:
// the role imports nothing.
func Handler(q Running, imp Importer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /queue/ls", func(w http.ResponseWriter, r *http.Request) {
		l, err := List(r.Context(), q)
		answer(w, l, err)
	})
	mux.HandleFunc("GET /queue/verify", func(w http.ResponseWriter, r *http.Request) {
		rep, err := q.Verify(r.Context())
		answer(w, NewVerified(rep), err)
	})
	mux.HandleFunc("GET /queue/export", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		_, err := q.Export(r.Context(), w, r.FormValue("cursor"))
		switch {
		case errors.Is(err, queue.ErrNoCursor):
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			panic(http.ErrAbortHandler) // what was written is cut short, and the reader sees that
		}
	})
	mux.HandleFunc("POST /queue/import", func(w http.ResponseWriter, r *http.Request) {
		if imp == nil {
			http.Error(w, "this role imports nothing", http.StatusNotImplemented)
			return
		}
		did, err := imp(r.Context(), r.Body)
		answer(w, NewResult(did, err), nil)
	})
	return mux
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // whoever asked has gone
}

// Result is what an import did. With an error what is counted was imported all the same.
type Result struct {
	Batches    uint64   `json:"batches"`
	Records    uint64   `json:"records"`
	Payload    uint64   `json:"payload"`
	Conflicts  []string `json:"conflicts,omitzero"`  // ids that this node took with another content
	Unreadable uint64   `json:"unreadable,omitzero"` // left out by the export
	Error      string   `json:"error,omitzero"`
}

// NewResult returns what an import did in the form that travels.
func NewResult(did queue.Imported, err error) Result {
	r := Result{Batches: did.Batches, Records: did.Records, Payload: did.Payload, Unreadable: did.Unreadable}
	for _, id := range did.Conflicts {
		r.Conflicts = append(r.Conflicts, id.String())
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}
