"""Runs `smidgen` in forked children, so that hundreds of kills do not need hundreds of imports.

A request is a line of JSON on standard input, an answer one on standard output:

    {"do": "start", "arguments": [...], "output": FILE, ...}  ->  {"pid": N}
    {"do": "wait", "pid": N}                                   ->  {"status": N}, negative for a signal

What a child can be made to suffer:

    fail_at    die by SIGKILL just before the N-th operation on files, counted from 0
    half       with `fail_at` at a write: write half of it first
    count      write the number of operations to this file at the end
    user       become this user id first
    clock      let the time of day jump back and forth by years
    sabotage   break smidgen on purpose, by a name in SABOTAGE
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # PyTorch's optimizers import it when first used, which takes longer than a run here

import smidgen.files
import smidgen.tensorfile
from smidgen import cli
from smidgen.engines import eager
from smidgen.randomness import Purpose, Stream
from smidgen.runs import lock, run, runner
from smidgen.training import averaging, checkpoint, evaluation, loop, sums

OPERATIONS = ("open", "write", "fsync", "replace", "unlink", "ftruncate", "mkdir", "close")


class Failpoints:
    """Counts operations on files, and dies at one of them."""

    def __init__(self, fail_at: int | None, half: bool) -> None:
        self.seen, self.fail_at, self.half = 0, fail_at, half
        self.names: list[str] = []

    def install(self) -> None:
        for name in OPERATIONS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            number, self.seen = self.seen, self.seen + 1
            self.names.append(name)
            if number == self.fail_at:
                if self.half and name == "write":
                    handle, content = arguments
                    original(handle, bytes(content)[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return operation


def _plain_write(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """What people write who have not lost anything yet."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(handle, content)
    os.close(handle)


def _atomic_write_replaced() -> None:
    for module in (smidgen.files, sys.modules["smidgen.runs.directory"]):
        module.write_atomic = _plain_write  # type: ignore[attr-defined]


def _previous_not_kept() -> None:
    write = smidgen.files.write_atomic
    sys.modules["smidgen.runs.directory"].write_atomic = (  # type: ignore[attr-defined]
        lambda path, content, *, previous=None: write(path, content)
    )


def _reseeding_dropped() -> None:
    class Unseeded:
        def manual_seed(self, seed: int) -> None:
            pass

    eager.torch = _Replaced(torch, default_generator=Unseeded())  # type: ignore[assignment,attr-defined]


class _Replaced:
    """A module with some of its names replaced."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _hash_not_checked() -> None:
    header = smidgen.tensorfile._header
    smidgen.tensorfile._header = lambda content: _unsealed(header(content))
    # The header still says that it is sealed where the format is looked at.
    checkpoint.read_header = lambda *a, **o: _sealed(smidgen.tensorfile.read_header(*a, **o))  # type: ignore[attr-defined]
    checkpoint.read_tensors = (  # type: ignore[attr-defined]
        lambda path, header, **o: smidgen.tensorfile.read_tensors(path, _unsealed(header), **o)
    )


def _unsealed(header: smidgen.tensorfile.Header) -> smidgen.tensorfile.Header:
    return smidgen.tensorfile.Header(header.about, header.tensors, sealed=False)


def _sealed(header: smidgen.tensorfile.Header) -> smidgen.tensorfile.Header:
    return smidgen.tensorfile.Header(header.about, header.tensors, sealed=True)


def _optimizer_not_saved() -> None:
    checkpoint._optimizer_tensors = lambda state: {}


def _sums_not_saved() -> None:
    position = checkpoint._position
    checkpoint._position = lambda *a, **o: (position(*a, **o)[0], sums.EpochSums(seen=position(*a, **o)[1].seen))


def _order_by_state() -> None:
    """The order of the images drawn from a generator that goes on from epoch to epoch."""
    generator = np.random.default_rng(0)

    class Stateful:
        def __init__(self, *_: int) -> None:
            pass

        def permutation(self, count: int) -> Any:
            return generator.permutation(count)

        def torch_seed(self) -> int:
            return 0

    def stream(seed: int, purpose: Purpose, *rest: int) -> Any:
        return Stateful() if purpose == Purpose.ORDER else Stream(seed, purpose, *rest)

    loop.Stream = stream  # type: ignore[assignment,attr-defined]


def _lock_not_taken() -> None:
    lock._locked = lambda handle: True


SABOTAGE: dict[str, Callable[[], None]] = {
    "atomic write replaced by a plain one": _atomic_write_replaced,
    "previous checkpoint not kept": _previous_not_kept,
    "reseeding dropped": _reseeding_dropped,
    "hash not checked": _hash_not_checked,
    "optimizer not saved": _optimizer_not_saved,
    "running sums not saved": _sums_not_saved,
    "order of the images with a state": _order_by_state,
    "lock not taken": _lock_not_taken,
}

_IMPORTED = (averaging, evaluation, run, runner, torch._dynamo)  # in the zygote, so that no child has to


def child(request: dict[str, Any]) -> int:
    """What happens in a forked child."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Path(request["output"]).open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if "user" in request:
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])
    if "clock" in request:
        jumps = itertools.cycle([0.0, 1e9, -1e9, 5e9])
        real = time.time
        time.time = lambda: real() + next(jumps)
    if "sabotage" in request:
        SABOTAGE[request["sabotage"]]()
    failpoints = Failpoints(request.get("fail_at"), request.get("half", False))
    if "fail_at" in request or "count" in request:
        failpoints.install()
    status = cli.main(request["arguments"])
    if "count" in request:
        Path(request["count"]).write_text(json.dumps(failpoints.names))
    return status


def main() -> None:
    """Answer requests until standard input ends."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "wait":
            _, status = os.waitpid(request["pid"], 0)
            print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), file=answers)
            continue
        pid = os.fork()
        if pid:
            print(json.dumps({"pid": pid}), file=answers)
            continue
        status = 99
        try:
            status = child(request)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


if __name__ == "__main__":
    main()
