#!/usr/bin/env python3
"""plugin_ack = "line": puts lines into an SQLite file, each exactly once.

The number of a batch never means another batch of the same queue, and grows. It is
committed with the lines, so that a batch that comes again is known. (0 is no number.)"""
import io
import os
import sqlite3
import sys

db = sqlite3.connect(sys.argv[1])
db.execute("create table if not exists line (host text, rule text, line blob)")
db.execute("create table if not exists done (batch integer primary key)")
acks = os.fdopen(3, "w")
data = sys.stdin.buffer
while header := data.readline():
    word, n, lines, size = header.split()
    batch = data.read(int(size))
    if word != b"batch" or len(batch) != int(size):
        sys.exit("the input ends inside a batch")  # it comes again
    with db:  # one transaction
        if n == b"0" or db.execute("insert or ignore into done values (?)", (int(n),)).rowcount:
            rule = (os.environ["FTFUSE_HOST"], os.environ["FTFUSE_RULE"])
            db.executemany("insert into line values (?, ?, ?)", ((*rule, x.removesuffix(b"\n")) for x in io.BytesIO(batch)))
    print("ok", int(n), file=acks, flush=True)
