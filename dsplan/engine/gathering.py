"""Gathering: stage 3's gathered parameters over whole training steps, as changes at every hook.

The sequence of submodules comes from the model's programs; what is gathered at each comes from the
coordinator's rules. Neither depends on the batch size, so the result is shared by all batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from dsplan.activations import BLOCK, block_programs, programs
from dsplan.engine.alike import AlikeCoordinator, Repeat
from dsplan.engine.coordinator import Change, Coordinator, Mark, Module
from dsplan.engine.coordinators import coordinator_of
from dsplan.engine.hook_parts import Hook, HookPart
from dsplan.engine.leaves import leaf_of, owner_of
from dsplan.engine.trained import all_trained
from dsplan.families.adapters import FIRST_MATRIX
from dsplan.kernels import Kernels
from dsplan.model import ModelShape, Parameter
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
    ``repeats``: changes that come several times one after the other, as (position, how many, how often).
    """

    changes: tuple[Change, ...]
    leftovers: Change
    forgotten: tuple[tuple[int, tuple[int, ...], int], ...] = ()
    repeats: tuple[Repeat, ...] = ()

    def of_blocks(self, position: int, blocks: int, hooks: int) -> list[tuple[int, tuple[Change, ...]]]:
        """The changes of blocks of so many hooks from ``position`` on: how many blocks have the same, and which."""
        repeats = {first: times for first, _, times in self.repeats}
        found = []
        while blocks:
            times = min(repeats.get(position, 1), blocks)
            found.append((times, self.changes[position : position + hooks]))
            position += times * hooks
            blocks -= times
        return found


@dataclass(frozen=True, slots=True)
class GatherStep:
    """One optimizer step: its micro batches, then the release and the gathering around the update.

    ``invalidated``: what the secondary partitions took, which the step ends by forgetting.
    """

    passes: tuple[GatherPass, ...]
    released: int
    persistent: int
    invalidated: int = 0


class AnyBatch:
    """A workload as the key of a cache of what depends on its hooks alone: precision and checkpointing decide."""

    __slots__ = ("_decides", "workload")

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._decides = workload.precision, workload.activation_checkpointing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyBatch) and other._decides == self._decides

    def __hash__(self) -> int:
        return hash(self._decides)


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
    micro_batches = min(workload.gradient_accumulation_steps, MICRO_BATCHES)
    return _gather_steps(model, rules, world_size, AnyBatch(workload), kernels, micro_batches)


@lru_cache(maxsize=256)
def _gather_steps(
    model: ModelShape, rules: ZeroConfig, world_size: int, of: AnyBatch, kernels: Kernels, micro_batches: int
) -> tuple[GatherStep, ...]:
    workload, own_linear = of.workload, rules.memory_efficient_linear
    of_programs = kernels.of_programs(zero3_linear=own_linear)  # what is saved decides where a second run ends
    kind = coordinator_of(model, rules)
    parts = parts_of(model, workload, of_programs, saves_weights=not own_linear) if kind is Coordinator else ()
    coordinator: Coordinator | AlikeCoordinator = (AlikeCoordinator if parts else kind)(
        model, rules, world_size, workload.element_bytes, kernels
    )
    marks, saving = (
        ([], frozenset()) if parts else marks_and_saving(model, workload, of_programs, saves_weights=not own_linear)
    )
    steps: list[GatherStep] = []
    previous: tuple[int, ...] | None = None
    for _ in range(LONGEST_START):
        passes = []
        for _ in range(micro_batches):
            repeats: tuple[Repeat, ...] = ()
            if isinstance(coordinator, AlikeCoordinator):
                changes = coordinator.run_parts(parts)
                repeats = tuple(coordinator.repeats)
            else:
                changes = coordinator.run(marks, saving)
            passes.append(
                GatherPass(
                    changes=tuple(changes),
                    leftovers=coordinator.leftovers(),
                    forgotten=tuple(coordinator.forgotten),
                    repeats=repeats,
                )
            )
        steps.append(
            GatherStep(
                passes=tuple(passes),
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
    owners = frozenset(owner_of(parameter.name, leaf) for parameter in parameters)
    return owners | {"lm_head"} | {owner.removesuffix(FIRST_MATRIX) for owner in owners}


def acts(model: ModelShape, kind: int, what: object) -> bool:
    """Whether an event is a hook at which DeepSpeed acts: prefetching at every entry, releasing what a module owns."""
    return acting(model)(kind, what)


@lru_cache(maxsize=64)
def acting(model: ModelShape) -> Callable[[int, object], bool]:
    """:func:`acts` for one model."""
    owners, within, all_are = _owners(model), leaf_of(model) and f"{leaf_of(model)}.", all_trained(model)

    def acts(kind: int, what: object) -> bool:
        if within and isinstance(what, str) and what.startswith(within):
            return False
        if kind == LEAVE_BACKWARD and not all_are:  # which modules are in their backward pass matters
            return True
        return kind in _ENTERING or (kind in _LEAVING and what in owners)

    return acts


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
    external = _external(model, owned)
    modules: dict[str, Module] = {}
    shapes = [len(parameter.shape) for parameter in model.parameters]
    rule = _SavingRule(model, workload, frozenset(shapes), saves_weights=saves_weights)

    def module(name: str) -> Module:
        if name not in modules:
            parameters = tuple(owned.get(name, ()))
            in_block = name.startswith(model.block_prefix)
            saved = rule.saved(name, [(index, shapes[index]) for index in parameters], in_block=in_block)
            modules[name] = Module(name, parameters + external.get(name, ()), saved)
        return modules[name]

    named: dict[str, dict[object, Module]] = {}  # of each prefix

    def hooks(events: tuple[Event, ...], prefixes: Iterable[str] = ("",)) -> list[Mark]:
        """The hooks of one piece, or of a block for each of its prefixes."""
        found = [(kind, what) for kind, _, what in events if acting(model)(kind, what)]
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
    if not rule.saves:
        return marks, frozenset()
    # A weight is saved for the gradient of the input; a backward pass that makes none does not leave the module.
    left = {id(module) for kind, module in marks if kind == LEAVE_BACKWARD}
    saving = {position for position, (kind, module) in enumerate(marks) if kind == LEAVE and id(module) in left}
    return marks, frozenset(saving.difference(recomputed))


def _external(model: ModelShape, owned: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
    """Of each submodule the parameters of another's that it is fetched and released with.

    An adapted layer asks its first matrix for its type before it calls it, and what is asked of a partitioned parameter
    makes it an external one of the module under way (peft/tuners/lora/layer.py Linear.forward; DeepSpeed's
    runtime/zero/parameter_offload.py ZeROOrderedDict.__getitem__, register_external_parameter).
    """
    if all_trained(model):
        return {}
    return {
        name.removesuffix(FIRST_MATRIX): tuple(indices)
        for name, indices in owned.items()
        if name.endswith(FIRST_MATRIX)
    }


class _SavingRule:
    """Which parameters' gathered storage autograd keeps (:func:`marks_and_saving`).

    ``saves``: whether it keeps any of a model whose parameters have these numbers of dimensions.
    """

    def __init__(
        self, model: ModelShape, workload: Workload, dimensions: frozenset[int], *, saves_weights: bool
    ) -> None:
        # All experts' weights are one tensor, whose product saves it transposed (transformers' integrations/moe.py).
        self._kept = {MATRIX, EXPERTS} if saves_weights else {EXPERTS}
        plain = model.decoder is not None and model.decoder.saves_weights
        self._kept_in_blocks = {MATRIX, EXPERTS} if plain else self._kept
        self._detaches = workload.activation_checkpointing == "torch"
        self._embeddings = {parameter.name.rpartition(".")[0] for parameter in model.embedding_parameters}
        self.saves = saves_weights or plain or self._detaches or EXPERTS in dimensions

    def saved(self, name: str, parameters: Sequence[tuple[int, int]], *, in_block: bool) -> tuple[int, ...]:
        """Of a submodule's parameters, as (index, dimensions), those that are kept; their indices."""
        if name in self._embeddings:
            return ()
        kept = self._kept_in_blocks if in_block else self._kept
        return tuple([index for index, shape in parameters if shape in kept or (self._detaches and in_block)])


def parts_of(model: ModelShape, workload: Workload, kernels: Kernels, *, saves_weights: bool) -> tuple[HookPart, ...]:
    """The hooks of :func:`marks_and_saving`, those of alike blocks told once; none where blocks are not alike."""
    return _parts_of(model, AnyBatch(workload), kernels, saves_weights)


@lru_cache(maxsize=64)
def _parts_of(model: ModelShape, of: AnyBatch, kernels: Kernels, saves_weights: bool) -> tuple[HookPart, ...]:
    workload = of.workload
    layers = model.num_layers
    alike = [times for _, times in parameter_sizes(model).runs] == [1, layers, 1]
    if leaf_of(model) or not all_trained(model) or not alike:
        return ()
    pieces, is_hook = programs(model, workload, kernels), acting(model)

    def found(*events: Event) -> tuple[tuple[int, str], ...]:
        return tuple([(kind, str(what)) for kind, _, what in events if is_hook(kind, what)])

    blocks = {id(block): block for block in block_programs(model, workload, kernels)}.values()
    of_blocks = {(found(*block.forward), found(*block.backward)) for block in blocks}
    before, loss = found(*pieces.embedding.forward), found(*pieces.head.forward, *pieces.head.backward)
    after, prefix = found(*pieces.embedding.backward), model.block_prefix
    if len(of_blocks) != 1 or any(name.startswith(prefix) for _, name in (*before, *loss, *after)):
        return ()
    ((forward, backward),) = of_blocks
    first = len(model.embedding_parameters)
    head = first + layers * len(model.block_parameters)
    kinds = (model.embedding_parameters, model.block_parameters, model.head_parameters)
    dimensions = frozenset([len(parameter.shape) for parameters in kinds for parameter in parameters])
    rule = _SavingRule(model, workload, dimensions, saves_weights=saves_weights)
    of_ends = {**_owned(model.embedding_parameters, 0), **_owned(model.head_parameters, head)}
    if model.tied_module:
        of_ends["lm_head"] = of_ends[model.tied_module]
    of_block = _owned(model.block_parameters, 0)
    saved_of_ends = {name: rule.saved(name, owned, in_block=False) for name, owned in of_ends.items()}
    saved_of_block = {name: rule.saved(f"{prefix}{name}", owned, in_block=True) for name, owned in of_block.items()}
    left = {name for kind, name in (*backward, *loss, *after) if kind == LEAVE_BACKWARD}
    keeping = [name for saved in (saved_of_ends, saved_of_block) for name, those in saved.items() if those]
    if (rule.saves and not left.issuperset(keeping)) or not left.issuperset(of_block):
        return ()  # what is not left in its backward saves nothing, and goes at its end

    def end(hooks: Iterable[tuple[int, str]]) -> HookPart:
        return HookPart(_hooks(hooks, of_ends, saved_of_ends), rule.saves)

    def row(hooks: Iterable[tuple[int, str]], order: range, *, saves: bool) -> HookPart:
        of_layer = _hooks(hooks, of_block, saved_of_block)
        return HookPart(of_layer, saves, order, first, len(model.block_parameters))

    recomputes = workload.activation_checkpointing != "none"
    return (
        end(before),
        row(forward, range(layers), saves=rule.saves and not recomputes),
        end(loss),
        row(backward, range(layers)[::-1], saves=rule.saves),
        end(after),
    )


def _hooks(
    hooks: Iterable[tuple[int, str]], owned: Mapping[str, list[tuple[int, int]]], saved: Mapping[str, tuple[int, ...]]
) -> tuple[Hook, ...]:
    parameters = {name: tuple([index for index, _ in those]) for name, those in owned.items()}
    return tuple([Hook(kind, name, parameters.get(name, ()), saved.get(name, ())) for kind, name in hooks])


def _owned(parameters: Sequence[Parameter], first: int) -> dict[str, list[tuple[int, int]]]:
    """Index and dimensions of what each submodule owns, of parameters from index ``first`` on."""
    found: dict[str, list[tuple[int, int]]] = {}
    for index, parameter in enumerate(parameters, first):
        found.setdefault(parameter.name.rpartition(".")[0], []).append((index, len(parameter.shape)))
    return found
