package sink

import "ftfuse/internal/status"

// Counters are what a role's status says of its outputs.
func (s *Stats) Counters() []status.Counter {
	count := func(name, help string, v uint64) status.Counter {
		return status.Counter{Name: name, Help: help, Value: v}
	}
	gauge := func(name, help string, v int) status.Counter {
		return status.Counter{Name: name, Help: help, Gauge: true, Value: uint64(v)}
	}
	var dead Dead
	for _, d := range s.Dead {
		dead = Dead{dead.Letters + d.Letters, dead.Records + d.Records, dead.Bytes + d.Bytes}
	}
	return []status.Counter{
		count("output_written_bytes", "Bytes put into output files.", s.WrittenBytes),
		count("output_redone_bytes", "Bytes of an earlier run that the start found in their place.", s.RedoneBytes),
		count("output_unmatched_records", "Records that no output with files of its own wanted.", s.UnmatchedRecords),
		count("output_unmatched_bytes", "Bytes of records that no output with files of its own wanted.", s.UnmatchedBytes),
		count("output_passed_batches", "Batches that the queue had before there was an output.", s.PassedBatches),
		count("output_possible_doubles", "Parts of batches that may stand twice in an output file.", s.PossibleDoubles),
		count("output_generations", "Output files that were replaced, shrunk or appended to by somebody else.", s.Generations),
		count("output_split_pieces", "Pieces of long lines that could not be joined.", s.SplitPieces),
		count("output_checkpoints", "Times that output files were brought to disk.", s.Checkpoints),
		count("output_retries", "Attempts to go on with a file that could not be written to.", s.Retries),
		count("output_rotations", "Output files that ftfuse rotated.", s.Rotations),
		count("output_rotated_compressed", "Rotated output files that were compressed.", s.RotatedPacked),
		count("output_rotated_removed", "Rotated output files that were removed, being more than rotate.keep.", s.RotatedRemoved),
		count("output_rotated_removed_bytes", "Bytes of rotated output files that were removed, as they lay there.", s.RotatedRemovedBytes),
		count("output_rotate_errors", "Attempts to rotate, compress or remove an output file that failed.", s.RotateErrors),
		count("dead_letters", "Dead letters put aside.", dead.Letters),
		count("dead_letter_records", "Records in dead letters.", dead.Records),
		count("dead_letter_bytes", "Bytes in dead letters.", dead.Bytes),
		gauge("output_open_files", "Output files that are open.", s.OpenFiles),
		gauge("output_held_files", "Output files that cannot be written to for now.", s.HeldFiles),
	}
}
