"""Scripts that start the job: through DeepSpeed's launcher, torchrun or Slurm."""

from __future__ import annotations

import shlex

from dsplan.dsconfig.formats.deepspeed import checkpointing_note
from dsplan.dsconfig.formats.names import beside, require_json_name
from dsplan.dsconfig.formats.target import CONFIG_NAME, Emission, EmittedFile, Target, json_text
from dsplan.dsconfig.launch import (
    HOSTFILE,
    PORT,
    config_arguments,
    hostfile_text,
    launch_command,
    placeholder_note,
    torchrun_line,
)
from dsplan.heap_threshold import FIXED, REMEDY, VARIABLE

DEEPSPEED_NAME = "launch_deepspeed.sh"
TORCHRUN_NAME = "launch_torchrun.sh"
SLURM_NAME = "launch_slurm.sh"

_HEAD = "#!/usr/bin/env bash\n"
_STRICT = "set -euo pipefail\n"
#: What a task of Slurm's does before it becomes the script, which it gets as its arguments.
_TASK = 'export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"; exec "$@"'


def launch(target: Target) -> Emission:
    """The DeepSpeed configuration, a script for each launcher and, for several nodes, the hostfile."""
    require_json_name(target.output)
    cluster, config_path = target.cluster, str(target.output)
    hostfile = beside(target.output, CONFIG_NAME, HOSTFILE)
    slurm = beside(target.output, CONFIG_NAME, SLURM_NAME)
    forms = [
        EmittedFile(
            path=beside(target.output, CONFIG_NAME, DEEPSPEED_NAME),
            content=deepspeed_script(target, hostfile=str(hostfile)),
        ),
        EmittedFile(path=beside(target.output, CONFIG_NAME, TORCHRUN_NAME), content=torchrun_script(target)),
        EmittedFile(path=slurm, content=slurm_script(target)),
    ]
    if cluster.num_nodes > 1:
        forms.insert(1, EmittedFile(path=hostfile, content=hostfile_text(cluster)))
    return Emission(
        format="launch",
        config=target.document,
        config_path=target.output,
        files=(EmittedFile(path=target.output, content=json_text(target.document)), *forms),
        main="\n".join(f"# ---- {form.path} ----\n{form.content}" for form in forms),
        launch={
            "deepspeed": launch_command(cluster, target.script, config_path, hostfile=str(hostfile)),
            "torchrun": torchrun_line(cluster, target.script, config_arguments(config_path)),
            "slurm": shlex.join(["sbatch", str(slurm)]),
        },
        notes=tuple(note for note in (checkpointing_note(target), placeholder_note(cluster)) if note),
    )


def deepspeed_script(target: Target, *, hostfile: str) -> str:
    """DeepSpeed's launcher; on several nodes it reaches the others through pdsh (``launcher/multinode_runner.py``)."""
    where = (
        "# Run it on one of the nodes: it starts the others through pdsh and ssh, which must not ask for a password.\n"
        if target.cluster.num_nodes > 1
        else ""
    )
    kept = _heap(target)
    if kept and target.cluster.num_nodes > 1:
        # launcher/runner.py passes on what EXPORT_ENVS and the accelerator name, and what that file has.
        where += f"# The other nodes get of this environment only what ~/.deepspeed_env has: write {REMEDY} there.\n"
    line = launch_command(target.cluster, target.script, str(target.output), hostfile=hostfile)
    return f'{_HEAD}{where}{_STRICT}{kept}exec {line} "$@"\n'


def _heap(target: Target) -> str:
    """Where the model is built on the host: the line that has malloc give it back (:mod:`dsplan.heap_threshold`)."""
    if target.plan.zero.builds_on_device:
        return ""
    return (
        "# Each rank builds the model on the host: malloc gives back what has moved to the device.\n"
        f'export {VARIABLE}="${{{VARIABLE}:-{FIXED}}}"\n'
    )


def torchrun_script(target: Target) -> str:
    """torchrun; on several nodes they find each other at ``MASTER_ADDR``."""
    cluster = target.cluster
    script = shlex.join([target.script, *config_arguments(str(target.output))])
    if cluster.num_nodes == 1:
        line = f'torchrun --standalone --nproc-per-node={cluster.gpus_per_node} {script} "$@"'
        return f"{_HEAD}{_STRICT}{_heap(target)}exec {line}\n"
    return (
        f"{_HEAD}"
        "# Run it on every node, with the same MASTER_ADDR.\n"
        f"{_STRICT}"
        f"{_heap(target)}"
        ': "${MASTER_ADDR:?is the name or address of the first node}"\n'
        f"exec torchrun --nnodes={cluster.num_nodes} --nproc-per-node={cluster.gpus_per_node} \\\n"
        f'  --rdzv-id=train --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:${{MASTER_PORT:-{PORT}}}" \\\n'
        f'  {script} "$@"\n'
    )


def slurm_script(target: Target) -> str:
    """A batch job with one task a GPU, in the environment that ``deepspeed.init_distributed`` reads.

    It needs RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT (DeepSpeed ``comm/comm.py``,
    ``init_distributed``); the first two differ from task to task, and Slurm tells the third to tasks only.
    """
    cluster = target.cluster
    script = shlex.join(["python", target.script, *config_arguments(str(target.output))])
    return (
        f"{_HEAD}"
        "#SBATCH --job-name=train\n"
        f"#SBATCH --nodes={cluster.num_nodes}\n"
        f"#SBATCH --ntasks-per-node={cluster.gpus_per_node}\n"
        f"#SBATCH --gpus-per-node={cluster.gpus_per_node}\n"
        "# Partition, account, time and CPUs of a task are your site's: sbatch takes them on its command line.\n"
        f"{_STRICT}"
        f"{_heap(target)}"
        'read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")\n'
        f'export MASTER_ADDR MASTER_PORT="${{MASTER_PORT:-{PORT}}}"\n'
        f"srun bash -c {shlex.quote(_TASK)} \\\n"
        f'  task {script} "$@"\n'
    )
