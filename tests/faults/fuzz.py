"""A coverage-guided fuzzer (atheris) on one of smidgen's readers.

    python fuzz.py READER SECONDS

Ends with status 0 if every input ended in a result or a `SmidgenError`; else the culprit is left
in the working directory as `crash-…`, with the traceback. Slow inputs (10 s) count as crashes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Fuzz, and say in one line what came of it."""
    reader, seconds = sys.argv[1:]
    memory, target = Path("/dev/shm"), Path(__file__).with_name("fuzz_target.py")
    with tempfile.TemporaryDirectory(prefix="smidgen-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        command = [sys.executable, str(target), reader, seconds, folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print(done.stdout[-5000:])
    stats = dict(re.findall(r"stat::(\w+): +(\d+)", done.stdout))
    inputs, new = int(stats.get("number_of_executed_units", 0)), stats.get("new_units_added", "?")
    if new == "0":
        print("no input reached new code, so nothing was measured")
        return 1
    print(f"{reader}: {inputs:,} inputs in {seconds} s, {new} that reached new code, status {done.returncode}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
