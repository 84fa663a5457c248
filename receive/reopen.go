package receive

// Reopen looks at the names of all output files again and closes those that wait for nothing,
// as SIGUSR1 asks; see sink.Sink.Reopen. It may be called at any time while the role runs.
func (r *Receiver) Reopen() error {
	r.plugins.Reopen()
	return r.sink.Reopen()
}
