package config

import (
	"errors"
	"strings"
	"testing"
)

// want is one expected problem.
type want struct {
	line int
	kind error
	key  string
	text string // in What
	fix  string // in Fix
}

// minimal is what a table entry may begin with to be about one thing only.
const minimal = "host = \"h\"\n[mount]\n[[mount.forward]]\nprimary = [\"b:7401\"]\n"

// tlsGiven is what allow needs.
const tlsGiven = "tls = { cert = \"/a\", key = \"/b\", ca = \"/c\" }\n"

var badConfigs = map[string]struct {
	toml string
	want []want
}{
	"not toml": {"host = \n", []want{{1, ErrSyntax, "host", "", "toml.io"}}},
	"key given twice": {
		"host = \"a\"\n\nhost = \"b\"\n",
		[]want{{3, ErrSyntax, "", "already", ""}},
	},
	"section given twice":           {"[mount]\n[queue]\n[mount]\n", []want{{3, ErrSyntax, "", "already", ""}}},
	"key made a table again":        {"host.x = 1\n\nhost = \"a\"\n", []want{{1, ErrType, "host", "is a table", ""}, {3, ErrSyntax, "host", "in line 1", "once"}}},
	"unclosed string":               {"host = \"a\n", []want{{1, ErrSyntax, "", "newline", ""}}},
	"unknown key at the top":        {"hots = \"a\"\n", []want{{1, ErrUnknownKey, "hots", "unknown key hots", "did you mean host?"}}},
	"unknown section":               {"\n[moun]\npoint = \"/x\"\n", []want{{2, ErrUnknownKey, "moun", "unknown key moun", "did you mean mount?"}}},
	"unknown key, other case":       {"[queue]\nMax_Bytes = \"1GiB\"\n", []want{{2, ErrUnknownKey, "queue.Max_Bytes", "", "did you mean max_bytes?"}}},
	"unknown key in a section":      {"[queue]\n# a\nspeed = 1\n", []want{{3, ErrUnknownKey, "queue.speed", "", "takes commit_bytes, commit_every, compression"}}},
	"unknown key in inline table":   {"log = { level = \"info\",\n  colour = true }\n", []want{{2, ErrUnknownKey, "log.colour", "", "format, level"}}},
	"unknown key in second element": {minimal + "[[mount.rule]]\npath = \"a\"\n[[mount.rule]]\npaht = \"b\"\n", []want{{8, ErrUnknownKey, "mount.rule.paht", "", "did you mean path?"}}},
	"unknown quoted key":            {"[queue]\n\"a.b\" = 1\n", []want{{2, ErrUnknownKey, `queue."a.b"`, "", ""}}},
	"replace in deny":               {minimal + "[[mount.rule]]\ndeny = [\n  { match = \"a\" },\n  { match = \"b\", replace = \"c\" },\n]\n", []want{{8, ErrUnknownKey, "mount.rule.deny.replace", "", "takes literal, match"}}},

	"string for boolean":         {"[mount]\nallow_other = \"yes\"\n", []want{{2, ErrType, "mount.allow_other", "is a string, not true or false", "write allow_other = true"}}},
	"integer for string":         {"host = 1\n", []want{{1, ErrType, "host", "is an integer, not a string", `write host = "web-01"`}}},
	"boolean for enum":           {"[queue]\non_full = true\n", []want{{2, ErrType, "queue.on_full", "is a boolean", `"block"`}}},
	"float for size":             {"[queue]\nmax_bytes = 1.5\n", []want{{2, ErrType, "queue.max_bytes", "is a float, not a size", `"8GiB"`}}},
	"array for duration":         {"shutdown_timeout = [1]\n", []want{{1, ErrType, "shutdown_timeout", "is an array, not a duration", `"10s"`}}},
	"duration without unit":      {"shutdown_timeout = 10\n", []want{{1, ErrType, "shutdown_timeout", "has no unit", `write "10s"`}}},
	"date for string":            {"[receive]\nlisten = 2026-01-01\n", []want{{2, ErrType, "receive.listen", "is a date", `":7401"`}}},
	"string for list":            {"[relay]\n[[relay.forward]]\nname = \"x\"\nprimary = \"a:1\"\n", []want{{4, ErrType, "relay.forward.primary", "is a string, not an array of strings", `["relay-a:7400"]`}}},
	"number in list":             {minimal + "[[mount.rule]]\nforward = [\n  \"default\",\n  1,\n]\n", []want{{8, ErrType, "mount.rule.forward", "is an integer", ""}}},
	"value for section":          {"queue = 3\n", []want{{1, ErrType, "queue", "is an integer, not a table", "[queue]"}}},
	"array for section":          {"[[mount]]\n", []want{{1, ErrType, "mount", "is an array, not a table", "[mount] once"}}},
	"section for array":          {"[receive]\n[receive.output]\ndir = \"/a\"\n", []want{{2, ErrType, "receive.output", "is a table, not an array of tables", "[[receive.output]]"}}},
	"strings for array of table": {minimal + "[[mount.rule]]\nallow = [\"a\"]\n", []want{{6, ErrType, "mount.rule.allow", "holds a string, not a table", ""}}},

	"bad enum":              {"[queue]\ndurability = \"fsync\"\n", []want{{2, ErrValue, "queue.durability", `"fsync"`, `write "journal" or "sync"`}}},
	"bad log level":         {"log.level = \"loud\"\n", []want{{1, ErrValue, "log.level", `"loud"`, `"debug" or "info"`}}},
	"bad enum in a rule":    {minimal + "[[mount.rule]]\nmode = \"lines\"\n", []want{{6, ErrValue, "mount.rule.mode", `"lines"`, `"line" or "binary"`}}},
	"size without unit":     {"[queue]\nmax_bytes = \"64\"\n", []want{{2, ErrValue, "queue.max_bytes", "not a size", `write "64B"`}}},
	"size in decimal units": {"[queue]\nmax_bytes = \"8 GB\"\n", []want{{2, ErrValue, "queue.max_bytes", "not a size", `write "8GiB"`}}},
	"size with a fraction":  {"[queue]\nmax_bytes = \"1.5GiB\"\n", []want{{2, ErrValue, "queue.max_bytes", "not a size", "whole number"}}},
	"size too large":        {"[queue]\nmax_bytes = \"99999999TiB\"\n", []want{{2, ErrValue, "queue.max_bytes", "not a size", ""}}},
	"size negative":         {"[mount]\nreadback = -1\n", []want{{2, ErrValue, "mount.readback", "out of range", "from 0 to 1TiB"}}},
	"size too small":        {"[queue]\nmax_bytes = \"1KiB\"\n", []want{{2, ErrValue, "queue.max_bytes", "out of range", "from 1MiB"}}},
	"duration too long":     {"[queue]\ncommit_every = \"1h\"\n", []want{{2, ErrValue, "queue.commit_every", "out of range", `to "10s"`}}},
	"duration negative":     {"[queue]\nmax_age = \"-1s\"\n", []want{{2, ErrValue, "queue.max_age", "not a duration", `"30s"`}}},
	"held for no time":      {"[mount]\nholder_timeout = \"10ms\"\n", []want{{2, ErrValue, "mount.holder_timeout", "shorter than", `"1s"`}}},
	"held for too long":     {"[mount]\nholder_timeout = \"2h\"\n", []want{{2, ErrValue, "mount.holder_timeout", "out of range", "1h"}}},
	"duration garbled":      {"shutdown_timeout = \"soon\"\n", []want{{1, ErrValue, "shutdown_timeout", "not a duration", ""}}},
	"commit above limit":    {"[queue]\nmax_bytes = \"1MiB\"\ncommit_bytes = \"2MiB\"\n", []want{{2, ErrConflict, "queue.max_bytes", "more than max_bytes", `"2MiB"`}}},
	"role's commit above":   {"[receive.queue]\ncommit_bytes = \"64MiB\"\nmax_bytes = \"32MiB\"\n", []want{{3, ErrConflict, "receive.queue.max_bytes", "more than max_bytes", `"64MiB"`}}},
	"umask not octal":       {"[mount]\numask = \"028\"\n", []want{{2, ErrValue, "mount.umask", `"028"`, "octal"}}},
	"umask too large":       {"[mount]\numask = \"1022\"\n", []want{{2, ErrValue, "mount.umask", `"1022"`, "octal"}}},
	"umask as a number":     {"[mount]\numask = 22\n", []want{{2, ErrType, "mount.umask", "is an integer", `umask = "022"`}}},
	"uid negative":          {"[mount]\nuid = -1\n", []want{{2, ErrValue, "mount.uid", "out of range", "0 to 4294967294"}}},
	"gid too large":         {"[mount]\ngid = 4294967295\n", []want{{2, ErrValue, "mount.gid", "out of range", ""}}},
	"host with a slash":     {"host = \"a/b\"\n", []want{{1, ErrValue, "host", "slash", "web-01"}}},
	"host empty":            {"\nhost = \"\"\n", []want{{2, ErrMissing, "host", "", "web-01"}}},
	"host dots":             {"host = \"..\"\n", []want{{1, ErrValue, "host", "dots", ""}}},
	"relative state_dir":    {"state_dir = \"var\"\n", []want{{1, ErrValue, "state_dir", "does not begin with a slash", "absolute"}}},
	"state_dir upwards":     {"state_dir = \"/var/../tmp\"\n", []want{{1, ErrValue, "state_dir", "goes up", "absolute"}}},
	"root as mount point":   {"[mount]\npoint = \"/\"\n", []want{{2, ErrValue, "mount.point", "root directory", ""}}},
	"glob":                  {minimal + "[[mount.rule]]\npath = \"a[\"\n", []want{{6, ErrValue, "mount.rule.path", "not a glob", ""}}},
	"glob with a slash":     {minimal + "[[mount.rule]]\npath = \"/logs/**\"\n", []want{{6, ErrValue, "mount.rule.path", "begins with a slash", `write "logs/**"`}}},
	"glob of a directory":   {minimal + "[[mount.rule]]\npath = \"logs/\"\n", []want{{6, ErrValue, "mount.rule.path", "ends in a slash", `write "logs/**"`}}},
	"glob upwards":          {minimal + "[[mount.rule]]\npath = \"../x\"\n", []want{{6, ErrValue, "mount.rule.path", "element", ""}}},
	"glob empty":            {minimal + "[[mount.rule]]\npath = \"\"\n", []want{{6, ErrValue, "mount.rule.path", "is empty", `"**"`}}},
	"hosts glob":            {"[[receive.output]]\nhosts = \"{a\"\n", []want{{2, ErrValue, "receive.output.hosts", "not a glob", ""}}},
	"regular expression":    {minimal + "[[mount.rule]]\nallow = [ { match = \"(\" } ]\n", []want{{6, ErrValue, "mount.rule.allow.match", "missing closing", "RE2"}}},
	"unknown attribute":     {minimal + "[[mount.rule]]\nattributes = [\"exe\", \"env\"]\n", []want{{6, ErrValue, "mount.rule.attributes", `"env"`, "always there"}}},
	"attribute twice":       {minimal + "[[mount.rule]]\nattributes = [\"exe\", \"exe\"]\n", []want{{6, ErrConflict, "mount.rule.attributes", "twice", "once"}}},
	"match and literal":     {minimal + "[[mount.rule]]\nallow = [ { match = \"a\", literal = \"b\" } ]\n", []want{{6, ErrConflict, "mount.rule.allow.literal", "both", "two entries"}}},
	"empty literal":         {minimal + "[[mount.rule]]\ndeny = [ { literal = \"\" } ]\n", []want{{6, ErrValue, "mount.rule.deny.literal", "is empty", ""}}},
	"literal that is none":  {minimal + "[[mount.rule]]\ndeny = [ { literal = 1 } ]\n", []want{{6, ErrType, "mount.rule.deny.literal", "is an integer", ""}}},
	"filter of binary": {minimal + "[[mount.rule]]\nmode = \"binary\"\nallow = [ { match = \"a\" } ]\ndeny = [ { match = \"a\" } ]\ndefault = \"deny\"\n", []want{
		{7, ErrConflict, "mount.rule.allow", "looks at lines", "line"}, {8, ErrConflict, "mount.rule.deny", "looks at lines", "line"}, {9, ErrConflict, "mount.rule.default", "is for lines", "transfer = false"},
	}},
	"max_record of lines":    {minimal + "[[mount.rule]]\nmax_record = \"1MiB\"\n", []want{{6, ErrConflict, "mount.rule.max_record", "is for mode", "max_line"}}},
	"max_record of nothing":  {minimal + "[[mount.rule]]\nmode = \"binary\"\nmax_record = 0\n", []want{{7, ErrValue, "mount.rule.max_record", "", ""}}},
	"max_line of binary":     {minimal + "[[mount.rule]]\nmode = \"binary\"\nmax_line = \"1MiB\"\n", []want{{7, ErrConflict, "mount.rule.max_line", "is for lines", "max_record"}}},
	"groups of nothing sent": {minimal + "[[mount.rule]]\ntransfer = false\nforward = [\"default\"]\n", []want{{7, ErrConflict, "mount.rule.forward", "nothing is sent", "transfer = true"}}},
	"attributes of nothing":  {minimal + "[[mount.rule]]\ntransfer = false\nattributes = [\"exe\"]\n", []want{{7, ErrConflict, "mount.rule.attributes", "there are none", "output"}}},
	"literal of two lines":   {minimal + "[[mount.rule]]\ndeny = [ { literal = \"a\\nb\" } ]\n", []want{{6, ErrValue, "mount.rule.deny.literal", "line feed", "each line"}}},
	"plugin_output, a dir":   {minimal + "[[mount.rule]]\nplugin = [\"/bin/cat\"]\nplugin_output = \"/out/\"\n", []want{{7, ErrValue, "mount.rule.plugin_output", "ends in a slash", "file"}}},
	"output, a dir":          {minimal + "[[mount.rule]]\noutput = \"/out/\"\n", []want{{6, ErrValue, "mount.rule.output", "ends in a slash", "file"}}},
	"output is plugin's too": {minimal + "[[mount.rule]]\nplugin = [\"/bin/cat\"]\nplugin_output = \"/out/a%\"\noutput = \"/out/a%%\"\n", []want{{7, ErrConflict, "mount.rule.plugin_output", "(line 8)", "another file"}}},
	"named one is plugin's":  {minimal + "[[mount.rule]]\nplugin = [\"/bin/cat\"]\nplugin_output = \"/out/a\"\n[[mount.output]]\nname = \"n\"\ndir = \"/out\"\nfile = \"a\"\n", []want{{7, ErrConflict, "mount.rule.plugin_output", "mount.output (line 8)", "another file"}}},
	"plugin's file, again":   {"[receive]\n[[receive.output]]\nfile = \"a\"\n[[receive.output]]\nplugin = [\"/bin/cat\"]\nfile = \"a\"\n", []want{{4, ErrConflict, "receive.output", "(line 2)", "another file"}}},
	"one file, two ways":     {"[receive]\n[[receive.output]]\nfile = \"a\"\nmode = \"0600\"\n[[receive.output]]\nfile = \"a\"\n", []want{{5, ErrConflict, "receive.output", "/data/ftfuse/a", "the same rotate"}}},
	"one template, two ways": {"[relay]\n[[relay.output]]\nrotate = { every = \"24h\" }\n[[relay.output]]\n", []want{{4, ErrConflict, "relay.output", "/data/ftfuse/%H/%F", "the same rotate"}}},
	"rule's, two ways":       {minimal + "[[mount.rule]]\noutput = \"/out/a\"\n[[mount.output]]\nname = \"n\"\ndir = \"/out\"\nfile = \"a\"\nmode = \"0600\"\n", []want{{6, ErrConflict, "mount.rule.output", "(line 7)", "the same rotate"}}},
	"filter without match":   {minimal + "[[mount.rule]]\nallow = [ { replace = \"x\" } ]\n", []want{{6, ErrMissing, "mount.rule.allow", "no match", ""}}},
	"replace with no group":  {minimal + "[[mount.rule]]\nallow = [ { match = \"a\", replace = \"$1\" } ]\n", []want{{6, ErrValue, "mount.rule.allow.replace", `"1"`, "groups 0 to 0"}}},
	"replace runs on":        {minimal + "[[mount.rule]]\nallow = [ { match = \"(a)\", replace = \"$1x\" } ]\n", []want{{6, ErrValue, "mount.rule.allow.replace", `"1x"`, "write ${1}x"}}},
	"no such group":          {minimal + "name = \"colo\"\n[[mount.rule]]\nforward = [\"colo\",\n \"cola\"]\n", []want{{8, ErrValue, "mount.rule.forward", `"cola"`, `write "colo"`}}},
	"group named twice":      {minimal + "name = \"colo\"\n[[mount.rule]]\nforward = [\"colo\", \"colo\"]\n", []want{{7, ErrConflict, "mount.rule.forward", "twice", "once"}}},
	"empty list of groups":   {minimal + "[[mount.rule]]\nforward = []\n", []want{{6, ErrValue, "mount.rule.forward", "no group", "transfer = false"}}},
	"relative output":        {minimal + "[[mount.rule]]\noutput = \"copy/%F\"\n", []want{{6, ErrValue, "mount.rule.output", "slash", "[[mount.output]]"}}},
	"output without a name":  {minimal + "[[mount.output]]\ndir = \"/copies\"\n", []want{{5, ErrMissing, "mount.output", "no name", ""}}},
	"output's bad name":      {minimal + "[[mount.output]]\nname = \"a/b\"\n", []want{{6, ErrValue, "mount.output.name", "a/b", "slash"}}},
	"two of a name":          {minimal + "[[mount.output]]\nname = \"a\"\n[[mount.output]]\nname = \"a\"\n", []want{{8, ErrConflict, "mount.output.name", "two", ""}}},
	"output with a plugin":   {minimal + "[[mount.output]]\nname = \"a\"\nplugin = [\"/bin/cat\"]\n", []want{{7, ErrConflict, "mount.output.plugin", "rules'", ""}}},
	"name elsewhere":         {"[[receive.output]]\nname = \"a\"\n", []want{{2, ErrUnknownKey, "receive.output.name", "", ""}}},
	"group of a local name":  {"[mount]\n[[mount.forward]]\nname = \"output/a\"\nprimary = [\"a:1\"]\n", []want{{3, ErrValue, "mount.forward.name", "local", ""}}},
	"mode in words":          {"[[receive.output]]\nmode = \"rw\"\n", []want{{2, ErrValue, "receive.output.mode", "permission bits", "0644"}}},
	"mode without its owner": {"[[receive.output]]\nmode = \"0440\"\n", []want{{2, ErrValue, "receive.output.mode", "owner", "0600"}}},
	"dir_mode without x":     {"[[receive.output]]\ndir_mode = \"0644\"\n", []want{{2, ErrValue, "receive.output.dir_mode", "owner", "0700"}}},
	"copies below mount":     {minimal + "[[mount.output]]\nname = \"a\"\ndir = \"/mnt/ftfuse/copy\"\n", []want{{7, ErrConflict, "mount.output.dir", "lies below", ""}}},
	"output with data":       {minimal + "[[mount.rule]]\noutput = \"/copy/%L\"\n", []want{{6, ErrValue, "mount.rule.output", "%L", ""}}},
	"plugin by name":         {minimal + "[[mount.rule]]\nplugin = [\"grep\"]\n", []want{{6, ErrValue, "mount.rule.plugin", `"grep"`, "/usr/bin/grep"}}},
	"plugin_ack alone":       {minimal + "[[mount.rule]]\nplugin_ack = \"line\"\n", []want{{6, ErrMissing, "mount.rule.plugin_ack", "without a plugin", ""}}},
	"plugin_timeout short":   {minimal + "[[mount.rule]]\nplugin = [\"/bin/cat\"]\nplugin_timeout = \"1ms\"\n", []want{{7, ErrValue, "mount.rule.plugin_timeout", "shorter", "100ms"}}},
	"plugin's file":          {minimal + "[receive]\n[[receive.output]]\nplugin = [\"/bin/cat\"]\nfile = \"%H\"\n", []want{{8, ErrConflict, "receive.output.file", "none", "%T at most"}}},
	"rotate without when":    {"[[receive.output]]\nrotate = { keep = 3 }\n", []want{{2, ErrMissing, "receive.output.rotate", "neither", "size"}}},
	"rotate too small":       {"[[receive.output]]\nrotate = { size = \"1KiB\" }\n", []want{{2, ErrValue, "receive.output.rotate.size", "", ""}}},
	"rotate with bzip2":      {"[[receive.output]]\nrotate = { every = \"24h\", compress = \"bzip2\" }\n", []want{{2, ErrValue, "receive.output.rotate.compress", "bzip2", "zstd"}}},
	"rotate unknown key":     {"[[receive.output]]\nrotate = { every = \"24h\", max = 3 }\n", []want{{2, ErrUnknownKey, "receive.output.rotate.max", "max", ""}}},
	"rotate with a plugin":   {"[[receive.output]]\nplugin = [\"/bin/cat\"]\nrotate = { every = \"24h\" }\n", []want{{3, ErrConflict, "receive.output.rotate", "plugin", "logrotate"}}},
	"plugin_output alone":    {minimal + "[[mount.rule]]\nplugin_output = \"/x\"\n", []want{{6, ErrMissing, "mount.rule.plugin_output", "without a plugin", ""}}},
	"group without primary":  {"host = \"h\"\n[mount]\n[[mount.forward]]\nname = \"a\"\n", []want{{3, ErrMissing, "mount.forward", "no primary", `["HOST:7401"]`}}},
	"empty primary":          {"host = \"h\"\n[mount]\n[[mount.forward]]\nname = \"a\"\nprimary = []\n", []want{{5, ErrMissing, "mount.forward.primary", "no primary", ""}}},
	"second group unnamed":   {minimal + "[[mount.forward]]\nprimary = [\"c:1\"]\nname = \"x\"\n", []want{{3, ErrMissing, "mount.forward", "no name", "name ="}}},
	"groups of one name":     {"[[mount.forward]]\nprimary = [\"c:1\"]\nname = \"x\"\n[[mount.forward]]\nprimary = [\"d:1\"]\nname = \"x\"\n", []want{{6, ErrConflict, "mount.forward.name", `"x"`, ""}}},
	"group with empty name":  {"[[mount.forward]]\nprimary = [\"c:1\"]\nname = \"\"\n", []want{{3, ErrValue, "mount.forward.name", "empty", ""}}},
	"destination twice":      {"[[mount.forward]]\nprimary = [\"c:1\"]\nsecondary = [\"c:1\"]\n", []want{{3, ErrConflict, "mount.forward.secondary", "twice", ""}}},
	"destination, no port":   {"[[mount.forward]]\nprimary = [\"b:1\",\n\"relay-a\"]\n", []want{{3, ErrValue, "mount.forward.primary", "missing port", "HOST:7401"}}},
	"destination, no host":   {"[[mount.forward]]\nprimary = [\":7401\"]\n", []want{{2, ErrValue, "mount.forward.primary", "no host", "HOST:7401"}}},
	"destination, port 0":    {"[[mount.forward]]\nprimary = [\"a:0\"]\n", []want{{2, ErrValue, "mount.forward.primary", "port 0", ""}}},
	"destination, port name": {"[[mount.forward]]\nprimary = [\"a:http\"]\n", []want{{2, ErrValue, "mount.forward.primary", `"http"`, ""}}},
	"destination, bare IPv6": {"[[mount.forward]]\nprimary = [\"2001:db8::1:7401\"]\n", []want{{2, ErrValue, "mount.forward.primary", "too many colons", "[2001:db8::1]:7401"}}},
	"service, no protocol":   {"[[mount.forward]]\nprimary = [\"srv+relay.example.org\"]\n", []want{{2, ErrValue, "mount.forward.primary", "srv+_ftfuse._tcp.DOMAIN", "HOST:7401"}}},
	"service in broadcast":   {"[[mount.forward]]\nmode = \"broadcast\"\nprimary = [\"srv+_ftfuse._tcp.a\"]\n", []want{{3, ErrConflict, "mount.forward.primary", "backlog for each", "HOST:7401"}}},
	"service written twice":  {"[[mount.forward]]\nprimary = [\"srv+_ftfuse._tcp.a\", \"srv+_ftfuse._tcp.a.\"]\n", []want{{2, ErrConflict, "mount.forward.primary", "twice", ""}}},
	"stand-in for nobody":    {"[[mount.forward]]\nmode = \"broadcast\"\nprimary = [\"a:1\"]\nsecondary = [\"b:1\",\n\"c:1\"]\n", []want{{5, ErrConflict, "mount.forward.secondary", "2 secondaries for 1", "at most one"}}},
	"no buckets":             {"[mount]\nbuckets = 0\n", []want{{2, ErrValue, "mount.buckets", "out of range", "from 1 to 16"}}},
	"too many buckets":       {"[mount]\nbuckets = 17\n", []want{{2, ErrValue, "mount.buckets", "out of range", "from 1 to 16"}}},
	"buckets as text":        {"[mount]\nbuckets = \"4\"\n", []want{{2, ErrType, "mount.buckets", "is a string, not an integer", "16"}}},
	"keep_until":             {"[queue]\nkeep_until = \"end\"\n", []want{{2, ErrValue, "queue.keep_until", `"end"`, `"hop" or "final"`}}},
	"final_timeout of none":  {"[queue]\nfinal_timeout = \"0s\"\n", []want{{2, ErrValue, "queue.final_timeout", "out of range", `"1s"`}}},
	"no connections":         {"[relay]\nmax_connections = 0\n", []want{{2, ErrValue, "relay.max_connections", "out of range", "from 1 to"}}},
	"nor of an address":      {"[receive]\nmax_connections_per_address = -1\n", []want{{2, ErrValue, "receive.max_connections_per_address", "out of range", "from 1 to"}}},
	"allow without tls":      {"[receive]\nallow = { \"a\" = [\"*\"] }\n", []want{{2, ErrConflict, "receive.allow", "needs tls", "[tls]"}}},
	"allow nobody":           {tlsGiven + "[receive]\nallow = {}\n", []want{{3, ErrValue, "receive.allow", "lets nobody in", "remove it"}}},
	"allow for nobody":       {tlsGiven + "[relay.allow]\na = []\n", []want{{3, ErrValue, "relay.allow.a", "no host", `["*"]`}}},
	"allow, one host":        {tlsGiven + "[relay.allow]\na = \"b\"\n", []want{{3, ErrType, "relay.allow.a", "is a string", `["web-*"]`}}},
	"allow, bad name":        {tlsGiven + "[relay.allow]\n\"a.[b\" = [\"*\"]\n", []want{{3, ErrValue, `relay.allow."a.[b"`, "not a glob", ""}}},
	"allow, bad host":        {tlsGiven + "[relay.allow]\n\"a\" = [\"*\",\n\"\"]\n", []want{{4, ErrValue, "relay.allow.a", "not a glob", "web-*"}}},
	"listen, port too high":  {"[receive]\nlisten = \":70000\"\n", []want{{2, ErrValue, "receive.listen", `"70000"`, `":PORT"`}}},
	"listen, no port":        {"http.listen = \"localhost\"\n", []want{{1, ErrValue, "http.listen", "missing port", ""}}},
	"listen empty":           {"[receive]\nlisten = \"\"\n", []want{{2, ErrValue, "receive.listen", "missing port", ""}}},
	"one address, two roles": {"[relay]\nlisten = \":7400\"\n[receive]\nlisten = \"127.0.0.1:7400\"\n", []want{{4, ErrConflict, "receive.listen", "(line 2)", "another port"}}},
	"address of http":        {"http.listen = \":7401\"\n[receive]\n", []want{{2, ErrConflict, "receive.listen", "http.listen", "another port"}}},
	"http of two roles":      {"[mount.http]\nlisten = \"localhost:80\"\n[receive.http]\nlisten = \"127.0.0.1:80\"\n", []want{{4, ErrConflict, "receive.http.listen", "mount.http.listen", ""}}},
	"relay to itself":        {"[relay]\n[[relay.forward]]\nprimary = [\"localhost:7400\"]\n", []want{{3, ErrConflict, "relay.forward.primary", "itself", ""}}},
	"tls without key":        {"[tls]\ncert = \"/a\"\nca = \"/c\"\n", []want{{1, ErrMissing, "tls", "no key", "key ="}}},
	"tls without ca":         {"[tls]\ncert = \"/a\"\nkey = \"/b\"\n", []want{{1, ErrMissing, "tls", "no ca", "ca ="}}},
	"tls empty":              {"tls = {}\n", []want{{1, ErrMissing, "tls", "no cert", ""}, {1, ErrMissing, "tls", "no key", ""}, {1, ErrMissing, "tls", "no ca", ""}}},
	"tls relative":           {"[tls]\ncert = \"a.pem\"\nkey = \"/b\"\nca = \"/c\"\n", []want{{2, ErrValue, "tls.cert", "slash", "absolute"}}},
	"unknown directive":      {"[[receive.output]]\nformat = \"%H %q\"\n", []want{{2, ErrValue, "receive.output.format", "%q", "docs/configuration.md"}}},
	"data in a file name":    {"[[receive.output]]\nfile = \"%L\"\n", []want{{2, ErrValue, "receive.output.file", "%L", ""}}},
	"file upwards":           {"[[receive.output]]\nfile = \"../%F\"\n", []want{{2, ErrValue, "receive.output.file", "..", ""}}},
	"unknown conversion":     {"[[receive.output]]\ntime = \"%Y %Q\"\n", []want{{2, ErrValue, "receive.output.time", "%Q", ""}}},
	"relative dir":           {"[[receive.output]]\ndir = \"data\"\n", []want{{2, ErrValue, "receive.output.dir", "slash", ""}}},
	"relay's output":         {"[relay]\n[[relay.output]]\nformat = \"%\"\n", []want{{3, ErrValue, "relay.output.format", "lone", ""}}},

	"state_dir below mount":   {"state_dir = \"/mnt/ftfuse/state\"\n[mount]\n", []want{{1, ErrConflict, "state_dir", "lies below the mount point /mnt/ftfuse", "outside of /mnt/ftfuse"}}},
	"state_dir is the mount":  {"state_dir = \"/m/\"\nmount.point = \"/m\"\n", []want{{1, ErrConflict, "state_dir", "lies below the mount point", ""}}},
	"mount in state_dir":      {"\n[mount]\npoint = \"/var/lib/ftfuse/mnt\"\n", []want{{3, ErrConflict, "mount.point", "lies in state_dir /var/lib/ftfuse", "outside of /var/lib/ftfuse"}}},
	"dir below mount":         {"[mount]\n[[receive.output]]\ndir = \"/mnt/ftfuse/out\"\n", []want{{3, ErrConflict, "receive.output.dir", "lies below the mount point", ""}}},
	"file below mount":        {"[mount]\n[[receive.output]]\ndir = \"/mnt\"\nfile = \"ftfuse/%F\"\n", []want{{3, ErrConflict, "receive.output.dir", "lies below the mount point", ""}}},
	"default dir below mount": {"mount.point = \"/data\"\n[receive]\n", []want{{2, ErrConflict, "receive", "default dir", ""}}},
	"dir around mount":        {"[mount]\n[[receive.output]]\ndir = \"/mnt\"\n", []want{{3, ErrConflict, "receive.output.dir", "has the mount point", ""}}},
	"relay's dir below mount": {"[mount]\n[relay]\n[[relay.output]]\ndir = \"/mnt/ftfuse\"\n", []want{{4, ErrConflict, "relay.output.dir", "lies below", ""}}},
	"copy below mount":        {minimal + "[[mount.rule]]\noutput = \"/mnt/ftfuse/copy/%F\"\n", []want{{6, ErrConflict, "mount.rule.output", "lies below", ""}}},
	"plugin_output below":     {minimal + "[[mount.rule]]\nplugin = [\"/bin/cat\"]\nplugin_output = \"/mnt/ftfuse/x\"\n", []want{{7, ErrConflict, "mount.rule.plugin_output", "lies below", ""}}},
	"plugin below mount":      {minimal + "[[mount.rule]]\nplugin = [\"/mnt/ftfuse/cat\"]\n", []want{{6, ErrConflict, "mount.rule.plugin", "lies below", ""}}},
	"certificate below mount": {"[tls]\ncert = \"/mnt/ftfuse/c\"\nkey = \"/k\"\nca = \"/c\"\n[mount]\n", []want{{2, ErrConflict, "tls.cert", "lies below", ""}}},
	"dir around state_dir":    {"[[receive.output]]\ndir = \"/var/lib\"\n", []want{{2, ErrConflict, "receive.output.dir", "has state_dir", "move state_dir"}}},
	"dir is state_dir":        {"[[receive.output]]\ndir = \"/var/lib/ftfuse\"\n", []want{{2, ErrConflict, "receive.output.dir", "has state_dir", ""}}},
	"dir in a role's dir":     {"[[receive.output]]\ndir = \"/var/lib/ftfuse/receive/out\"\n", []want{{2, ErrConflict, "receive.output.dir", "belongs to the receive role", ""}}},

	"several at once": {
		"hots = \"a\"\nhost = 1\n[queue]\nmax_bytes = \"x\"\n[mount]\npoint = \"rel\"\n[[mount.rule]]\nmode = 1\n",
		[]want{
			{1, ErrUnknownKey, "hots", "", ""},
			{2, ErrType, "host", "", ""},
			{4, ErrValue, "queue.max_bytes", "", ""},
			{6, ErrValue, "mount.point", "", ""},
			{8, ErrType, "mount.rule.mode", "", ""},
		},
	},
}

func TestBadConfigIsRefusedWithItsLine(t *testing.T) {
	for name, tc := range badConfigs {
		t.Run(name, func(t *testing.T) {
			c, err := Parse("bad.toml", []byte(tc.toml))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("Parse returned %v, %v; want an *Error for:\n%s", c, err, tc.toml)
			}
			checkProblems(t, e, tc.want)
		})
	}
}

func checkProblems(t *testing.T, e *Error, all []want) {
	t.Helper()
	if len(e.Problems) != len(all) {
		t.Fatalf("%d problems, want %d:\n%v", len(e.Problems), len(all), e)
	}
	for i, w := range all {
		p := e.Problems[i]
		if p.Line != w.line || !errors.Is(p, w.kind) || w.key != "" && p.Key != w.key {
			t.Errorf("problem %d is line %d, %v, key %s: %v\nwant line %d, %v, key %s", i, p.Line, p.Kind, p.Key, p, w.line, w.kind, w.key)
		}
		if !strings.Contains(p.What, w.text) || !strings.Contains(p.Fix, w.fix) {
			t.Errorf("problem %d is\n%v\nwant %q in what is wrong and %q in what to write", i, p, w.text, w.fix)
		}
		if p.What == "" || p.Fix == "" || strings.Contains(p.Error(), "%!") {
			t.Errorf("problem %d does not say what is wrong and what to write: %v", i, p)
		}
		if !errors.Is(e, w.kind) {
			t.Errorf("errors.Is does not find %v in the *Error", w.kind)
		}
	}
}

// TestFilesThatTwoMayWrite: two outputs share a file where they say the same of it, have the same
// template for files of their own, and plugins append to one file.
func TestFilesThatTwoMayWrite(t *testing.T) {
	for name, toml := range map[string]string{
		"two formats":      "[receive]\n[[receive.output]]\nfile = \"a\"\nmode = \"0600\"\n[[receive.output]]\nfile = \"a\"\nmode = \"0600\"\npath = \"x\"\nformat = \"%T %L\"\n",
		"hosts' own":       "[receive]\n[[receive.output]]\nhosts = \"web-*\"\nmode = \"0600\"\n[[receive.output]]\nhosts = \"db-*\"\n",
		"paths' own":       "[relay]\n[[relay.output]]\npath = \"a/**\"\nfile = \"%F\"\nrotate = { every = \"24h\" }\n[[relay.output]]\npath = \"b/**\"\nfile = \"%F\"\n",
		"rules' own":       minimal + "[[mount.rule]]\noutput = \"/out/%F\"\n[[mount.rule]]\npath = \"b\"\noutput = \"n\"\n[[mount.output]]\nname = \"n\"\ndir = \"/out\"\nfile = \"%F\"\nmode = \"0600\"\n",
		"two plugins":      minimal + "[[mount.rule]]\nplugin = [\"/bin/cat\"]\nplugin_output = \"/a\"\n[[mount.rule]]\npath = \"b\"\nplugin = [\"/bin/cat\"]\nplugin_output = \"/a\"\n",
		"attributes, kept": minimal + "[[mount.rule]]\ntransfer = false\nattributes = [\"exe\"]\noutput = \"n\"\n[[mount.output]]\nname = \"n\"\ndir = \"/out\"\nformat = \"%E %L\"\n",
	} {
		if _, err := Parse("good.toml", []byte(toml)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
