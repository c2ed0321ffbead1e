"""Runs a program behind a slow line: copies standard input to it at 20 MB/s. Started by the tests as a program."""

from __future__ import annotations

import os
import subprocess
import sys
import time

CHUNK_BYTES = 200_000

if __name__ == "__main__":
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
    assert program.stdin is not None
    while chunk := os.read(0, CHUNK_BYTES):
        time.sleep(len(chunk) / 20e6)
        program.stdin.write(chunk)
        program.stdin.flush()
    program.stdin.close()
    sys.exit(program.wait())
