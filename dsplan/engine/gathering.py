"""Gathering: stage 3's gathered parameters over whole training steps, as changes at every hook.

The sequence of submodules comes from the model's programs; what is gathered at each comes from the
coordinator's rules. Neither depends on the batch size, so the result is shared by all batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from dsplan.activations import BLOCK, block_programs, programs
from dsplan.engine.coordinator import Change, Coordinator, Mark, Module, Row
from dsplan.engine.leaves import LeafCoordinator, leaf_of, owner_of
from dsplan.engine.secondary import SecondaryCoordinator
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.partition import parameter_sizes
from dsplan.tape import ENTER, ENTER_BACKWARD, LEAVE, LEAVE_BACKWARD, Event
from dsplan.workload import Workload
from dsplan.zero import OffloadParam, ZeroConfig

#: More micro batches than this repeat the second one (dsplan.walk).
MICRO_BATCHES = 3
#: Steps after which the gathering has always been seen to repeat itself.
LONGEST_START = 4

#: Dimensions of a linear layer's weight.
MATRIX = 2
EXPERTS = 3

_ENTERING = (ENTER, ENTER_BACKWARD)
_LEAVING = (LEAVE, LEAVE_BACKWARD)


@dataclass(frozen=True, slots=True)
class GatherPass:
    """One forward and backward: a change at each hook, and what the end of the backward releases.

    ``forgotten``: of the hooks at which a saved weight goes the position, the module's parameters and the bytes. It
    goes when its node has run, so before the first gradient of the module is handed over.
    """

    changes: tuple[Change, ...]
    leftovers: Change
    forgotten: tuple[tuple[int, tuple[int, ...], int], ...] = ()


@dataclass(frozen=True, slots=True)
class GatherStep:
    """One optimizer step: its micro batches, then the release and the gathering around the update.

    ``invalidated``: what the secondary partitions took, which the step ends by forgetting.
    """

    passes: tuple[GatherPass, ...]
    released: int
    persistent: int
    invalidated: int = 0


def gather_steps(
    model: ModelShape, zero: ZeroConfig, world_size: int, workload: Workload, kernels: Kernels
) -> tuple[GatherStep, ...]:
    """What is gathered at every hook of the first step and of those after it, until they repeat.

    DeepSpeed records its trace in the first pass and prefetches from the second on; a step that starts
    with the same parameters gathered as the one before it repeats it.
    """
    # What decides: the gathering keys, and of the workload only what changes the hooks.
    rules = ZeroConfig(
        stage=3,
        stage3_prefetch_bucket_size=zero.stage3_prefetch_bucket_size,
        stage3_param_persistence_threshold=zero.stage3_param_persistence_threshold,
        stage3_model_persistence_threshold=zero.stage3_model_persistence_threshold,
        stage3_max_live_parameters=zero.stage3_max_live_parameters,
        stage3_max_reuse_distance=zero.stage3_max_reuse_distance,
        memory_efficient_linear=zero.memory_efficient_linear,
        zero_hpz_partition_size=zero.zero_hpz_partition_size,
        offload_param=OffloadParam(device="cpu" if zero.offloads_parameters else "none"),
    )
    hooks = Workload(
        sequence_length=1,
        precision=workload.precision,
        activation_checkpointing=workload.activation_checkpointing,
    )
    micro_batches = min(workload.gradient_accumulation_steps, MICRO_BATCHES)
    return _gather_steps(model, rules, world_size, hooks, kernels, micro_batches)


@lru_cache(maxsize=256)
def _gather_steps(
    model: ModelShape, rules: ZeroConfig, world_size: int, hooks: Workload, kernels: Kernels, micro_batches: int
) -> tuple[GatherStep, ...]:
    marks, saving = marks_and_saving(model, hooks, kernels, saves_weights=not rules.memory_efficient_linear)
    kind: type[Coordinator] = LeafCoordinator if leaf_of(model) else Coordinator
    kind = SecondaryCoordinator if rules.zero_hpz_partition_size > 1 else kind
    coordinator = kind(model, rules, world_size, hooks.element_bytes, kernels)
    rows = () if leaf_of(model) else rows_of(model, hooks, kernels)
    steps: list[GatherStep] = []
    previous: tuple[int, ...] | None = None
    for _ in range(LONGEST_START):
        passes = tuple(
            GatherPass(
                changes=tuple(coordinator.run(marks, saving, rows)),
                leftovers=coordinator.leftovers(),
                forgotten=tuple(coordinator.forgotten),
            )
            for _ in range(micro_batches)
        )
        steps.append(
            GatherStep(
                passes=passes,
                released=coordinator.partition_all(),
                persistent=coordinator.gather_persistent(),
                invalidated=coordinator.invalidate(),
            )
        )
        state = coordinator.state()
        if len(steps) > 1 and state == previous:
            break
        previous = state
    return tuple(steps)


@lru_cache(maxsize=64)
def _owners(model: ModelShape) -> frozenset[str]:
    """Names, within a block or whole, of the submodules that own parameters."""
    kinds = (model.block_parameters,) if model.decoder is None else model.decoder.kinds
    parameters = (*model.embedding_parameters, *chain.from_iterable(kinds), *model.head_parameters)
    leaf = leaf_of(model)
    return frozenset(owner_of(parameter.name, leaf) for parameter in parameters) | {"lm_head"}


def acts(model: ModelShape, kind: int, what: object) -> bool:
    """Whether an event is a hook at which DeepSpeed acts: prefetching at every entry, releasing what a module owns."""
    return _acts(model, _owners(model), kind, what)


def _acts(model: ModelShape, owners: frozenset[str], kind: int, what: object) -> bool:
    leaf = leaf_of(model)
    if leaf and isinstance(what, str) and what.startswith(f"{leaf}."):
        return False
    return kind in _ENTERING or (kind in _LEAVING and what in owners)


def _marks(model: ModelShape, workload: Workload, kernels: Kernels) -> list[Mark]:
    """Every hook of one forward and backward, in order."""
    return marks_and_saving(model, workload, kernels, saves_weights=False)[0]


def marks_and_saving(
    model: ModelShape, workload: Workload, kernels: Kernels, *, saves_weights: bool
) -> tuple[list[Mark], frozenset[int]]:
    """Every hook of one forward and backward, in order, and the positions at which autograd has saved weights.

    Two things save a tensor of its own over a gathered storage: torch's linear layer its transposed weight
    (``saves_weights``), and torch's checkpoint, in its second run, everything that is saved, detached
    (torch/utils/checkpoint.py ``_recomputation_hook``).
    """
    pieces = programs(model, workload, kernels)
    owned: dict[str, list[int]] = {}
    for index, parameter in enumerate(model.parameters):
        owned.setdefault(owner_of(parameter.name, leaf_of(model), model.block_prefix), []).append(index)
    if model.tied_module:
        owned["lm_head"] = owned[model.tied_module]
    modules: dict[str, Module] = {}
    detaches = workload.activation_checkpointing == "torch"
    shapes = [len(parameter.shape) for parameter in model.parameters]
    # All experts' weights are one tensor, whose product saves it transposed (transformers' integrations/moe.py).
    kept = {MATRIX, EXPERTS} if saves_weights else {EXPERTS}
    plain = model.decoder is not None and model.decoder.saves_weights
    kept_in_blocks = {MATRIX, EXPERTS} if plain else kept
    embeddings = {parameter.name.rpartition(".")[0] for parameter in model.embedding_parameters}

    def module(name: str) -> Module:
        if name not in modules:
            parameters = tuple(owned.get(name, ()))
            in_block = name.startswith(model.block_prefix)
            saved = tuple(index for index in parameters if shapes[index] in (kept_in_blocks if in_block else kept))
            if detaches and in_block:
                saved = parameters
            modules[name] = Module(name, parameters, () if name in embeddings else saved)
        return modules[name]

    named: dict[str, dict[object, Module]] = {}  # of each prefix

    def hooks(events: tuple[Event, ...], prefixes: Iterable[str] = ("",)) -> list[Mark]:
        """The hooks of one piece, or of a block for each of its prefixes."""
        owners = _owners(model)
        found = [(kind, what) for kind, _, what in events if _acts(model, owners, kind, what)]
        names = {what for _, what in found}
        marks: list[Mark] = []
        for prefix in prefixes:
            there = named.setdefault(prefix, {})
            for what in names:
                if what not in there:
                    there[what] = module(prefix.rstrip(".") if what == BLOCK else f"{prefix}{what}")
            marks += [(kind, there[what]) for kind, what in found]
        return marks

    blocks = [f"{model.block_prefix}{layer}." for layer in range(model.num_layers)]
    before = hooks(pieces.embedding.forward)
    of_layer = block_programs(model, workload, kernels)
    forward = list(chain.from_iterable(hooks(of_layer[layer].forward, (name,)) for layer, name in enumerate(blocks)))
    backward = [hooks(of_layer[layer].backward, (name,)) for layer, name in enumerate(blocks)]
    after = [
        *hooks(pieces.head.forward),
        *hooks(pieces.head.backward),
        *chain.from_iterable(reversed(backward)),  # where blocks are checkpointed, their forward too
        *hooks(pieces.embedding.backward),
    ]
    marks = [*before, *forward, *after]
    recomputed = range(len(before), len(before) + len(forward)) if workload.activation_checkpointing != "none" else ()
    saves = saves_weights or plain or detaches or EXPERTS in shapes
    if not saves:
        return marks, frozenset()
    saving = {position for position, (kind, _) in enumerate(marks) if kind == LEAVE}
    return marks, frozenset(saving.difference(recomputed))


def rows_of(model: ModelShape, workload: Workload, kernels: Kernels) -> tuple[Row, ...]:
    """Where in the marks of a pass the blocks are, forward and backward; none where they are not alike."""
    layers = model.num_layers
    if [times for _, times in parameter_sizes(model).runs] != [1, layers, 1]:
        return ()
    pieces, owners = programs(model, workload, kernels), _owners(model)

    def count(events: tuple[Event, ...]) -> int:
        return sum([_acts(model, owners, kind, what) for kind, _, what in events])

    forward, backward = count(pieces.block.forward), count(pieces.block.backward)
    first = count(pieces.embedding.forward)
    second = first + layers * forward + count(pieces.head.forward) + count(pieces.head.backward)
    return (first, forward, layers), (second, backward, layers)
