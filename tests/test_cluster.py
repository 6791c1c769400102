"""A sweep on a Ray cluster: the same runs as anywhere, also when a node dies in the middle."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smidgen.sweeps.progress import SweepLines
from smidgen.sweeps.sweep import sweep
from smidgen.trials.find import find_trial

# Ray reads both when it is first used in a process.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


def test_one_worker_two_shards_and_two_nodes_of_which_one_is_killed_make_the_same_runs(tmp_path: Path) -> None:
    """Six jobs on real MNIST."""
    from ray.cluster_utils import Cluster

    trial = replace(find_trial("mnist-4-strict"), name="short", epochs=1)
    expected = sweep([trial], "0-5", workers=1, out=tmp_path / "one")
    assert (expected.done, expected.failures) == (6, ())
    assert _weights(sweep([trial], "0-5", workers=2, out=tmp_path / "two")) == _weights(expected)
    for part in (1, 2):
        shard = sweep([trial], "0-5", workers=1, shard=f"{part}/2", out=tmp_path / f"shard{part}")
        assert shard.done == 3
        shutil.copytree(tmp_path / f"shard{part}", tmp_path / "shards", dirs_exist_ok=True)
    together = sweep([trial], "0-5", out=tmp_path / "shards")
    assert (together.done, together.kept) == (0, 6)
    assert _weights(together) == _weights(expected)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    lines: list[str] = []
    try:
        ray.init(address=cluster.address, log_to_driver=False)

        def kill() -> None:
            while not any("runs done" in line for line in lines):
                time.sleep(0.05)
            cluster.remove_node(nodes[0], allow_graceful=False)
            cluster.add_node(num_cpus=1)

        killer = threading.Thread(target=kill)
        killer.start()
        made = sweep([trial], "0-5", cluster="auto", out=tmp_path / "ray", progress=SweepLines(lines.append))
        killer.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert (made.done, made.failures) == (6, ())
    assert _weights(made) == _weights(expected)
    assert made.trials[0].runs[0].result.run_dir == str(made.trials[0].runs[0].directory)
    again = sweep([trial], "0-5", workers=1, out=tmp_path / "ray")
    assert (again.done, again.kept) == (0, 6)


def test_a_cluster_of_this_machine(tmp_path: Path, small_trial: Any) -> None:
    made = sweep([small_trial], "0-2", cluster="local", workers=2, out=tmp_path / "ray")
    expected = sweep([small_trial], "0-2", workers=1, out=tmp_path / "local")
    assert _weights(made) == _weights(expected)
    assert not ray.is_initialized()


def test_a_job_that_fails_is_reported(tmp_path: Path, small_trial: Any) -> None:
    missing = replace(small_trial, optimizer=replace(small_trial.optimizer, lr=1000.0, momentum=0.99))
    made = sweep([missing, small_trial], "0", cluster="local", workers=1, out=tmp_path)
    assert [str(job) for job, _ in made.failures] == ["small, seed 0"]
    assert "training diverged" in made.failures[0][1]
    assert made.done == 1


def _weights(made: Any) -> list[str]:
    return [run.result.weights_sha256 for run in made.trials[0].runs]
