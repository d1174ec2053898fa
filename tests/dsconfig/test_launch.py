"""The launchers' lines and the hostfile."""

from __future__ import annotations

from dsplan.dsconfig.launch import deepspeed_line, hostfile_text, launch_command, placeholder_note, torchrun_line
from dsplan.hardware import Cluster

ONE = Cluster(gpus_per_node=4)
TWO = Cluster(gpus_per_node=8, num_nodes=2)


def test_one_node() -> None:
    assert launch_command(ONE) == "deepspeed --num_gpus 4 train.py --deepspeed --deepspeed_config ds_config.json"


def test_several_nodes_need_a_hostfile() -> None:
    assert launch_command(TWO, "my train.py", "ds.json", hostfile="my hosts") == (
        "deepspeed --hostfile 'my hosts' --num_nodes 2 --num_gpus 8 'my train.py' "
        "--deepspeed --deepspeed_config ds.json"
    )


def test_without_the_launchers_own_argument() -> None:
    assert deepspeed_line(ONE, "t.py", ["a.json"], local_rank=False) == (
        "deepspeed --num_gpus 4 --no_local_rank t.py a.json"
    )


def test_torchrun() -> None:
    assert torchrun_line(ONE, "t.py", ["a b"]) == "torchrun --standalone --nproc-per-node=4 t.py 'a b'"
    assert torchrun_line(TWO, "t.py", []) == (
        "torchrun --nnodes=2 --nproc-per-node=8 --rdzv-id=train --rdzv-backend=c10d --rdzv-endpoint=node-0:29500 t.py"
    )


def test_the_hostfile_says_that_its_names_are_placeholders() -> None:
    comment, *lines = hostfile_text(TWO).splitlines()
    assert comment.startswith("# node-0 and node-1 are placeholders")
    assert lines == ["node-0 slots=8", "node-1 slots=8"]
    assert hostfile_text(ONE) == "node-0 slots=4\n"


def test_placeholders_are_named_once() -> None:
    assert placeholder_note(ONE) == ""
    assert placeholder_note(Cluster(num_nodes=100)).startswith("node-0 to node-99 are placeholders")
