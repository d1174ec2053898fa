"""Launch scripts: bash takes them, and what they start is what each launcher's own parser reads.

The launchers are stood in for by scripts that write down how they were called.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dsplan.dsconfig.formats import FORMATS, render
from dsplan.dsconfig.formats.target import Emission
from dsplan.hardware import Cluster
from dsplan.plan import Plan
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig

from .readers import CLUSTER, ONE_NODE, ROOT, target, written

ODD = "it's $HOME.json"
SCRIPTS = ("launch_deepspeed", "launch_torchrun", "launch_slurm")

#: Writes its arguments and the environment of a rank to calls.jsonl.
_NOTE = f"""#!{sys.executable}
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "MALLOC_MMAP_THRESHOLD_")
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]], {{name: os.environ.get(name) for name in names}}
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(call) + "\\n")
"""
#: One task of a job of two nodes.
_SRUN = """#!/bin/bash
SLURM_PROCID=5 SLURM_LOCALID=1 SLURM_NTASKS=8 exec "$@"
"""
_SCONTROL = """#!/bin/bash
[ "$*" = "show hostnames gpu[07-08]" ] && printf 'gpu07\\ngpu08\\n'
"""


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (
        *((name, _NOTE) for name in ("deepspeed", "torchrun", "python")),
        *(("srun", _SRUN), ("scontrol", _SCONTROL)),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def start(script: Path, stand_ins: Path, *arguments: str, **environment: str) -> tuple[int, list[list[object]], str]:
    """Exit code, calls of the stand-ins, and standard error of a script."""
    calls = script.parent / "calls.jsonl"
    calls.unlink(missing_ok=True)
    path = f"{stand_ins}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", script.name, *arguments],
        cwd=script.parent,
        env={"PATH": path, "CALLS": str(calls), "HOME": "/nowhere", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
    return done.returncode, found, done.stderr


def names(emission: Emission) -> list[str]:
    return [file.path.name for file in emission.files]


@pytest.mark.parametrize("cluster", [ONE_NODE, CLUSTER, Cluster(gpus_per_node=8, num_nodes=100)])
@pytest.mark.parametrize("output", ["ds_config.json", ODD])
def test_bash_takes_every_script(cluster: Cluster, output: str, tmp_path: Path) -> None:
    written("launch", target(cluster=cluster, output=output), tmp_path / "a")
    scripts = sorted((tmp_path / "a").glob("*.sh"))
    assert len(scripts) == 3
    for script in scripts:
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_files_and_their_names() -> None:
    assert names(render("launch", target(cluster=ONE_NODE))) == ["ds_config.json", *(f"{name}.sh" for name in SCRIPTS)]
    assert names(render("launch", target(output="z3.json"))) == [
        *("z3.json", "launch_deepspeed_z3.sh", "hostfile_z3", "launch_torchrun_z3.sh", "launch_slurm_z3.sh")
    ]


def test_the_main_text_has_every_form_and_not_the_configuration() -> None:
    emission = render("launch", target())
    for file in emission.files[1:]:
        assert file.content in emission.main
    assert emission.files[0].content not in emission.main


@pytest.mark.parametrize("output", ["ds_config.json", ODD])
def test_scripts_start_what_the_lines_say(output: str, stand_ins: Path, tmp_path: Path) -> None:
    """On one node, with an argument that goes to the training script."""
    emission = written("launch", target(cluster=ONE_NODE, output=output), tmp_path / "a")
    for launcher in ("deepspeed", "torchrun"):
        script = next((tmp_path / "a").glob(f"launch_{launcher}*"))
        code, calls, error = start(script, stand_ins, "--seed", "a b")
        assert (code, error) == (0, "")
        assert [call for call, _ in calls] == [[*shlex.split(emission.launch[launcher]), "--seed", "a b"]]


def test_torchrun_of_several_nodes_asks_for_the_first_one(stand_ins: Path, tmp_path: Path) -> None:
    emission = written("launch", target(), tmp_path / "a")
    script = tmp_path / "a" / "launch_torchrun.sh"
    code, calls, error = start(script, stand_ins)
    assert (code != 0, calls) == (True, [])
    assert "MASTER_ADDR: is the name or address of the first node" in error
    code, calls, error = start(script, stand_ins, MASTER_ADDR="node-0")
    assert (code, error) == (0, "")
    assert [call for call, _ in calls] == [shlex.split(emission.launch["torchrun"])]
    _, calls, _ = start(script, stand_ins, MASTER_ADDR="10.0.0.1", MASTER_PORT="4711")
    assert "--rdzv-endpoint=10.0.0.1:4711" in calls[0][0]  # type: ignore[operator]


@pytest.mark.parametrize("output", ["ds_config.json", ODD])
def test_slurm_gives_each_task_what_deepspeed_reads(output: str, stand_ins: Path, tmp_path: Path) -> None:
    emission = written("launch", target(output=output), tmp_path / "a")
    submit, name = shlex.split(emission.launch["slurm"])
    assert submit == "sbatch"
    script = tmp_path / "a" / name
    code, calls, error = start(script, stand_ins, "--seed", "1", SLURM_JOB_NODELIST="gpu[07-08]")
    assert (code, error) == (0, "")
    environment = {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "29500",
        "MALLOC_MMAP_THRESHOLD_": "1048576",
    }
    words = ["python", "train.py", "--deepspeed", "--deepspeed_config", output, "--seed", "1"]
    assert calls == [[words, environment]]
    directives = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert directives[1:] == [f"#SBATCH --{name}" for name in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4")]


_PARSERS = """
import json, os, shlex, sys
from deepspeed.launcher.runner import _parse_hostfile, parse_args
from torch.distributed.run import get_args_parser

def read(words, hostfile):
    if words[0] == "deepspeed":
        found = parse_args(words[1:])
        hosts = _parse_hostfile(open(hostfile).readlines()) if hostfile else None
        shape = [found.num_nodes if hosts else 1, found.num_gpus]
        where = [found.no_local_rank, found.hostfile if hosts else None, hosts]
        return [shape, found.user_script, found.user_args, *where]
    found = get_args_parser().parse_args(words[1:])
    shape = [int(found.nnodes.split(":")[-1]), int(found.nproc_per_node)]
    where = [found.standalone, found.rdzv_backend, found.rdzv_endpoint]
    return [shape, found.training_script, found.training_script_args, None, *where]

for line in json.load(open(sys.argv[1])):
    sys.stdout.write("\\n" + json.dumps(read(*line)))
"""


@pytest.mark.engine
def test_the_launchers_own_parsers_take_every_line(tmp_path: Path) -> None:
    """Each line of deepspeed or torchrun of every format, on one node and on two."""
    cases = []
    for name in FORMATS:
        for cluster in (ONE_NODE, CLUSTER):
            emission = render(name, target(cluster=cluster))
            cases += [
                (name, cluster, shlex.split(line))
                for launcher, line in emission.launch.items()
                if launcher in ("deepspeed", "torchrun")
            ]
    written("launch", target(), tmp_path / "a")
    hostfile = str(tmp_path / "a" / "hostfile")
    lines = [(words, hostfile if cluster.num_nodes > 1 else None) for _, cluster, words in cases]
    path = tmp_path / "lines.json"
    path.write_text(json.dumps(lines))
    done = subprocess.run(
        [sys.executable, "-c", _PARSERS, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    assert len(found) == len(cases) == 11
    for (name, cluster, words), (shape, script, arguments, no_local_rank, *rest) in zip(cases, found, strict=True):
        assert shape == [cluster.num_nodes, cluster.gpus_per_node], words
        assert script == "train.py"
        expected = {"hf": ["training_arguments.json"], "lightning": []}
        assert arguments == expected.get(name, ["--deepspeed", "--deepspeed_config", "ds_config.json"])
        if words[0] == "deepspeed":
            assert no_local_rank is (name == "hf")
            hosts = {"node-0": 4, "node-1": 4} if cluster.num_nodes > 1 else None
            assert rest == ["hostfile" if hosts else None, hosts]
        else:
            assert rest == ([False, "c10d", "node-0:29500"] if cluster.num_nodes > 1 else [True, "static", ""])


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "slurm"])
@pytest.mark.parametrize(("stage", "expected"), [(0, "1048576"), (2, "1048576"), (3, None)])
def test_malloc_gives_back_a_model_that_was_built_on_the_host(
    launcher: str, stage: int, expected: str | None, stand_ins: Path, tmp_path: Path
) -> None:
    """Stage 3 builds it on the device. What the user has set stays."""
    plan = Plan(name="p", workload=Workload(), zero=ZeroConfig(stage=stage))
    written("launch", target(plan, cluster=ONE_NODE), tmp_path / "a")
    script = tmp_path / "a" / f"launch_{launcher}.sh"
    job = {"SLURM_JOB_NODELIST": "gpu[07-08]"} if launcher == "slurm" else {}
    for given, found in (({}, expected), ({"MALLOC_MMAP_THRESHOLD_": "4096"}, "4096")):
        code, calls, error = start(script, stand_ins, **job, **given)
        assert (code, error) == (0, "")
        assert [environment["MALLOC_MMAP_THRESHOLD_"] for _, environment in calls] == [found]  # type: ignore[index, call-overload]


def test_other_nodes_are_told_where_the_deepspeed_launcher_reads_it() -> None:
    texts = {file.path.name: file.content for file in render("launch", target()).files}
    assert "write MALLOC_MMAP_THRESHOLD_=1048576 there" in texts["launch_deepspeed.sh"]
    alone = {file.path.name: file.content for file in render("launch", target(cluster=ONE_NODE)).files}
    assert ".deepspeed_env" not in alone["launch_deepspeed.sh"]
