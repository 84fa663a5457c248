package record

// flagNames are the flags by their bits, as people read them.
var flagNames = [...]string{
	"unterminated", "break", "first-piece", "middle-piece", "last-piece", "recovered", "offline", "overwrite", "binary", "opener", "several",
}

// FlagNames returns the names of the flags that are set, in the order of their bits. Who asks
// again and again keeps what it got.
func FlagNames(flags uint16) []string {
	var names []string
	for bit, name := range flagNames {
		if flags>>bit&1 != 0 {
			names = append(names, name)
		}
	}
	return names
}

// LineFlags returns what of a record's flags belongs to one of its lines: the pieces of a long
// line, and what has no end, are the first or the last of them. Break is about the output alone.
func LineFlags(flags uint16, first, last bool) uint16 {
	flags &^= Break
	if !first {
		flags &^= PieceMiddle | PieceLast
	}
	if !last {
		flags &^= PieceFirst | Unterminated
	}
	return flags
}
