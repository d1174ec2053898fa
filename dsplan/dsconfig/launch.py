"""How to start a job: the lines of DeepSpeed's launcher and of torchrun, and the hostfile of several nodes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from dsplan.hardware import Cluster

SCRIPT = "train.py"
HOSTFILE = "hostfile"
#: The port that torch and DeepSpeed's launcher take where none is given.
PORT = 29500


def node_names(cluster: Cluster) -> list[str]:
    """``node-0``, ``node-1`` …: placeholders, since a plan does not know what the machines are called."""
    return [f"node-{number}" for number in range(cluster.num_nodes)]


def placeholder_note(cluster: Cluster) -> str:
    """The sentence that says which names are placeholders; empty on one node, where there are none."""
    names = node_names(cluster)
    if len(names) == 1:
        return ""
    shown = f"{names[0]} and {names[1]} are" if len(names) == 2 else f"{names[0]} to {names[-1]} are"
    return f"{shown} placeholders: write the names or addresses of your machines in their place."


def config_arguments(config_path: str) -> list[str]:
    """What a script takes that calls ``deepspeed.add_config_arguments`` (DeepSpeed ``__init__.py``)."""
    return ["--deepspeed", "--deepspeed_config", config_path]


def launch_command(
    cluster: Cluster, script: str = SCRIPT, config_path: str = "ds_config.json", *, hostfile: str = HOSTFILE
) -> str:
    """The ``deepspeed`` launcher's line for a script that takes DeepSpeed's own arguments."""
    return deepspeed_line(cluster, script, config_arguments(config_path), hostfile=hostfile)


def deepspeed_line(
    cluster: Cluster, script: str, arguments: Sequence[str], *, hostfile: str = HOSTFILE, local_rank: bool = True
) -> str:
    """The ``deepspeed`` launcher's line (DeepSpeed ``launcher/runner.py``, ``parse_args``).

    Several nodes need a hostfile with one line ``HOST slots=GPUS`` a node.

    Args:
        cluster: nodes and GPUs of each.
        script: the training script.
        arguments: what it takes.
        hostfile: path of the hostfile; not used on one node.
        local_rank: whether the launcher adds ``--local_rank=N`` to the arguments, as it does by itself
            (``launcher/launch.py``); a script that does not know the option stops at it.
    """
    words = ["deepspeed"]
    if cluster.num_nodes > 1:
        words += ["--hostfile", hostfile, "--num_nodes", str(cluster.num_nodes)]
    words += ["--num_gpus", str(cluster.gpus_per_node)]
    if not local_rank:
        words.append("--no_local_rank")
    return shlex.join([*words, script, *arguments])


def torchrun_line(cluster: Cluster, script: str, arguments: Sequence[str]) -> str:
    """torchrun's line (torch ``distributed/run.py``); several nodes each run it, with the same endpoint."""
    if cluster.num_nodes == 1:
        words = ["torchrun", "--standalone", f"--nproc-per-node={cluster.gpus_per_node}"]
    else:
        words = [
            *("torchrun", f"--nnodes={cluster.num_nodes}", f"--nproc-per-node={cluster.gpus_per_node}"),
            *("--rdzv-id=train", "--rdzv-backend=c10d", f"--rdzv-endpoint={node_names(cluster)[0]}:{PORT}"),
        ]
    return shlex.join([*words, script, *arguments])


def hostfile_text(cluster: Cluster) -> str:
    """The hostfile, one line a node (DeepSpeed ``launcher/runner.py``, ``_parse_hostfile``, which skips comments)."""
    note = placeholder_note(cluster)
    lines = [f"{name} slots={cluster.gpus_per_node}" for name in node_names(cluster)]
    return "\n".join([*([f"# {note}"] if note else []), *lines]) + "\n"
