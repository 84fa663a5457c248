#!/bin/sh
# plugin_ack = "line": before each batch stands a line "batch N LINES BYTES". A batch is
# acknowledged on descriptor 3 once it is safe; what was not acknowledged when this script
# ended comes again. (The batch that is cut off by the end of the input is not acknowledged.)
while read -r word n lines bytes; do
	[ "$word" = batch ] || { echo "expected a batch, got: $word" >&2; exit 1; }
	i=0
	while [ "$i" -lt "$lines" ]; do
		IFS= read -r line || exit 0
		printf '%s\n' "$line" || exit 1
		i=$((i + 1))
	done
	echo "ok $n" >&3
done
