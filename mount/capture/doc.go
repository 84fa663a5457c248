// Package capture turns what was written to spool files into records, lines and
// sealed batches, and commits them to the queue.
//
//	journal entries ──► file queues ──► cutter ──► builder ──► txn ──► queue
//	(or: "it grew")      round robin    lines       1 MiB       │        │ Done
//	                                                            │        ▼
//	                 batches, journal seq, spool positions, ────┘    completer: frees journal slots,
//	                 unfinished lines: one transaction               punches, removes settled files
//
// One goroutine (Run) takes extents of spool files in, cuts them, seals batches and
// submits transactions; while the queue commits one, the next is cut. What a
// transaction carries is the whole truth at that point: the bytes before a file's
// position are in a batch, in an unfinished line that the queue keeps, or counted as
// a hole or as not to be transferred. So a kill at any point loses and doubles
// nothing; docs/architecture.md lists the points.
//
// The cutter (cut.go, hold.go) knows nothing of the journal: it takes extents with
// attributes. Where they come from is intake.go's business.
package capture
