package relay

// Reopen looks at the names of all output files again and closes those that wait for nothing,
// as SIGUSR1 asks; see sink.Sink.Reopen. It may be called at any time while the role runs.
func (r *Relay) Reopen() error {
	r.plugins.Reopen()
	if r.sink == nil {
		return nil
	}
	return r.sink.Reopen()
}
