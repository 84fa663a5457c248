#!/bin/sh
# plugin_ack = "pipe": lines on standard input, nothing else. It prints a line for each
# error, with the host and the rule that ftfuse names in the environment.
while IFS= read -r line; do
	case $line in
	*ERROR*) printf '%s %s: %s\n' "$FTFUSE_HOST" "$FTFUSE_RULE" "$line" || exit 1 ;;
	esac
done
