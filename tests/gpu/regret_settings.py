"""The settings in which every stage is timed: model, ranks, and an allocator that stands for a smaller card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from dsplan.catalogue import preset
from dsplan.dsconfig.buckets import tuned
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.strategies import standard_plans
from dsplan.workload import Workload

_STAGES = ("zero1", "zero3", "zero2", "zero0")
RESIDENT = tuple(name + suffix for name in _STAGES for suffix in ("", "-ckpt"))
WITH_OFFLOAD = (*RESIDENT, "zero2-offload", "zero3-offload", "zero2-offload-ckpt")
#: The job that measures what the search recommends among all micro batches and buckets, not the ladder's alone.
RECOMMENDED = "recommended"
#: The same where the search did not ask for replays (``dsplan recommend`` without ``--closely``), if it is another.
QUICK = "recommended, quick"
#: What the search said before anything was measured.
ASKED = (RECOMMENDED, QUICK)
#: What a run under a cap needs over the predicted peak, at least: at 1.10 nineteen of 22 lived (tests/data/caps.json).
LIVES = 1.10


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One machine and model; ``strategies`` in the order in which they are measured."""

    name: str
    model: str
    ranks: int
    cap_gib: float
    sequence_length: int = 1024
    shape: dict[str, Any] = field(default_factory=dict)
    micro_batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    strategies: tuple[str, ...] = RESIDENT
    precision: str = "bf16"
    searched: tuple[int, ...] = ()  # micro batches that are searched; empty: all
    most_sizes: int = 4  # micro batches that are measured of a strategy

    @property
    def cap_bytes(self) -> int:
        return round(self.cap_gib * 2**30)

    @property
    def cluster(self) -> Cluster:
        return Cluster(gpus_per_node=self.ranks)

    def model_shape(self) -> ModelShape:
        return replace(preset(self.model), **self.shape)

    def fits(self, peak_bytes: int) -> bool:
        """Whether a run with this predicted peak is worth trying: one that dies can take a process with it."""
        return LIVES * peak_bytes <= self.cap_bytes

    def plans(self, micro_batch_size: int = 1) -> Iterator[Plan]:
        model = self.model_shape()
        workload = Workload(
            micro_batch_size=micro_batch_size, sequence_length=self.sequence_length, precision=self.precision
        )
        by_name = {plan.name: plan for plan in standard_plans(model, workload)}
        for name in self.strategies:
            yield replace(by_name[name], zero=tuned(by_name[name].zero, model, world_size=self.ranks))


SDPA = {"attention": "sdpa", "dropout": 0.0}
_SHORT = {"sequence_length": 128, "micro_batch_sizes": (4, 16, 64, 128, 256)}
#: 6.7B as GPT-3's table has it (arXiv:2005.14165, table 2.1), with minGPT's parts.
_6_7B = {"num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}

#: Every second one is kept unseen while the model of step time is made.
SETTINGS = (
    Setting(name="medium-n1-16", model="gpt2-medium", ranks=1, cap_gib=16, strategies=WITH_OFFLOAD),
    Setting(name="large-sdpa-n1-24", model="gpt2-large", ranks=1, cap_gib=24, shape=SDPA),
    Setting(name="xl-sdpa-n1-40", model="gpt2-xl", ranks=1, cap_gib=40, shape=SDPA),
    Setting(name="1.7B-n1-80", model="1.7B", ranks=1, cap_gib=80, **_SHORT),
    Setting(name="large-n2-24", model="gpt2-large", ranks=2, cap_gib=24),
    Setting(
        name="medium-sdpa-n2-16",
        model="gpt2-medium",
        ranks=2,
        cap_gib=16,
        shape={"attention": "sdpa"},
    ),
    Setting(name="6.7B-sdpa-n2-80", model="gpt2-xl", ranks=2, cap_gib=80, shape={**SDPA, **_6_7B}),
    Setting(name="xl-n2-40", model="gpt2-xl", ranks=2, cap_gib=40),
)
#: Two ranks and all strategies, measured after the model of step time had seen the others.
SECOND = (
    Setting(name="medium-n2-16", model="gpt2-medium", ranks=2, cap_gib=16, most_sizes=3),
    Setting(name="large-sdpa-n2-24", model="gpt2-large", ranks=2, cap_gib=24, shape=SDPA, most_sizes=3),
    Setting(name="xl-sdpa-n2-40", model="gpt2-xl", ranks=2, cap_gib=40, shape=SDPA, most_sizes=2),
    Setting(name="1.7B-n2-80", model="1.7B", ranks=2, cap_gib=80, most_sizes=3, **_SHORT),
)
_2_7B = {"num_layers": 32, "hidden_size": 2560, "num_attention_heads": 32}  # the same table
#: One rank again, once a setting began as a run does, without its cache emptied; the last is one of the first set's.
THIRD = (
    Setting(name="xl-n1-40", model="gpt2-xl", ranks=1, cap_gib=40, most_sizes=2),
    Setting(name="medium-sdpa-n1-16", model="gpt2-medium", ranks=1, cap_gib=16, shape=SDPA, most_sizes=3),
    Setting(name="large-n1-24", model="gpt2-large", ranks=1, cap_gib=24, most_sizes=3),
    Setting(name="2.7B-sdpa-n1-80", model="gpt2-xl", ranks=1, cap_gib=80, shape={**SDPA, **_2_7B}, most_sizes=2),
    replace(SETTINGS[2], most_sizes=3),
)
#: Four ranks on four cards.
FOURTH = (
    Setting(name="large-sdpa-n4-24", model="gpt2-large", ranks=4, cap_gib=24, shape=SDPA, most_sizes=2),
    Setting(name="xl-sdpa-n4-40", model="gpt2-xl", ranks=4, cap_gib=40, shape=SDPA, most_sizes=2),
    Setting(name="medium-n4-16", model="gpt2-medium", ranks=4, cap_gib=16, most_sizes=2),
    Setting(name="6.7B-sdpa-n4-80", model="gpt2-xl", ranks=4, cap_gib=80, shape={**SDPA, **_6_7B}, most_sizes=2),
)
SETS = {"first": SETTINGS, "second": SECOND, "third": THIRD, "fourth": FOURTH}
_TINY = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 32}
#: To try the machinery on a CPU.
TINY = tuple(
    Setting(
        name=f"tiny-n{ranks}-{number}",
        model="gpt2",
        ranks=ranks,
        cap_gib=1,
        sequence_length=32,
        shape=_TINY,
        micro_batch_sizes=(1, 4),
        searched=(1, 2, 4),
        precision="fp32",
        strategies=("zero0", "zero3-ckpt"),
    )
    for number, ranks in enumerate((1, 1, 2, 2))
)
