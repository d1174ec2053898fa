"""What every engine shares: the run it stands for, and the moments at which the walk calls it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

from dsplan import states
from dsplan.engine.stretches import NOTHING, Runs, first_of_block
from dsplan.families.adapters import is_adapter
from dsplan.kernels import Kernels
from dsplan.ledger import PAGEABLE, Ledger, Term
from dsplan.model import ModelShape
from dsplan.operators import PARAMETER_GRADIENT
from dsplan.partition import parameter_sizes
from dsplan.plan import Plan
from dsplan.sizes import Sizes
from dsplan.tape import GRADIENT

EngineT = TypeVar("EngineT", bound="Engine")


@dataclass(slots=True, kw_only=True)
class Run:
    """One rank of one plan, and the ledger that it writes.

    ``capacity_bytes`` is what the device has for tensors; None: as much as is asked for. ``built`` is what is built and
    moved, where ``model`` is the trained part of it alone; None: ``model`` is all of it.
    """

    model: ModelShape
    plan: Plan
    world_size: int
    kernels: Kernels
    ledger: Ledger
    rank: int = 0
    capacity_bytes: int | None = None
    built: ModelShape | None = None

    def of_rank(self, rank: int, ledger: Ledger) -> Run:
        """The same run of another rank, written into ``ledger``."""
        return Run(
            model=self.model,
            plan=self.plan,
            world_size=self.world_size,
            kernels=self.kernels,
            ledger=ledger,
            rank=rank,
            capacity_bytes=self.capacity_bytes,
            built=self.built,
        )

    @property
    def element_bytes(self) -> int:
        return self.plan.workload.element_bytes

    @property
    def sizes(self) -> Sizes:
        """Elements of every parameter, in ``nn.Module.parameters()`` order."""
        return parameter_sizes(self.model)


class Engine:
    """A DeepSpeed engine: the walk calls these in the order in which a training script does."""

    #: Whether gradients must be handed over one by one during the backward pass.
    follows_gradients = True
    #: Whether the hooks of every submodule matter (stage 3).
    follows_modules = False
    #: Steps until the engine repeats itself: the first has no optimizer states yet.
    num_steps = 2
    #: Whether no rank does anything of its own before :meth:`end_backward`.
    alike_in_backward = False
    #: Whether the micro batch under way is the last before the optimizer's step.
    boundary = True

    def __init__(self, run: Run) -> None:
        self.run = run
        self.ledger = run.ledger
        self.e = run.element_bytes
        self.sizes: tuple[int, ...] = run.sizes
        self._held = bytearray(len(self.sizes))  # 1: there is a gradient

    def initialise(self) -> None:
        """Build the model, move it, deepspeed.initialize."""
        raise NotImplementedError

    def begins_again(self) -> bool:
        """Whether a step's passes would do what the first one's did: they find what those found, and leave the host
        as it is. False: not told."""
        return False

    def copy(self: EngineT) -> EngineT:
        """The engine as it is now, with the same ledger."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def of_rank(self, run: Run) -> Engine | None:  # noqa: ARG002
        """The engine of another rank, which has done what this one has and nothing of its own yet; None: not known."""
        return None

    def begin_forward(self) -> None:
        """A micro batch starts."""

    def module(self, kind: int) -> None:
        """A submodule is entered or left (only when ``follows_modules``)."""

    def gradient(self, index: int) -> None:
        """Autograd has accumulated the gradient of parameter ``index``; it stays in ``.grad``."""
        if self._held[index]:
            self.ledger.free(PARAMETER_GRADIENT, self.e * self.sizes[index])  # added to what was there
            return
        self._held[index] = True
        if self.ledger.detailed:
            self.ledger.move(PARAMETER_GRADIENT, states.GRADIENTS, self.e * self.sizes[index])

    def blocks_at_once(self, layers: range, calls: tuple[tuple[int, int], ...]) -> Runs | None:
        """What the calls of several blocks one after the other come to, where that is known without making them.

        Args:
            layers: the blocks in their order.
            calls: (kind, index) of each call in a block (:data:`dsplan.engine.stretches.Stretch`).

        Returns:
            Of each block and call the (rise, net) in device bytes, the engine being as after all of them; None: the
            calls of the first of these blocks have to be made. No peak is reached.
        """
        if any(kind == GRADIENT for kind, _ in calls):
            return self.holding(layers, calls) if type(self).gradient is Engine.gradient else None
        return None if self.follows_modules else [(len(layers), (NOTHING,) * len(calls))]

    @cached_property
    def blocks_are_alike(self) -> bool:
        """Whether the parameters are those of the embedding, of blocks of the same sizes, and of the head."""
        sizes, layers = self.sizes, self.run.model.num_layers
        return isinstance(sizes, Sizes) and [times for _, times in sizes.runs] == [1, layers, 1]

    def holding(self, layers: range, calls: tuple[tuple[int, int], ...]) -> Runs | None:
        """:meth:`blocks_at_once` of an engine whose gradients stay where they are, or are added to those of before."""
        if not self.blocks_are_alike:
            return None
        lowest = min(layers[0], layers[-1])
        begin, end = (first_of_block(self.run.model, layer) for layer in (lowest, lowest + len(layers)))
        held = self._held[begin]
        if self._held[begin:end].count(held) != end - begin:
            return None
        self._held[begin:end] = b"\1" * (end - begin)
        rounded = self.run.kernels.rounded
        block = self.sizes[begin : begin + len(self.run.model.block_parameters)]
        each = tuple([(0, -rounded(self.e * block[index]) if held and index >= 0 else 0) for _, index in calls])
        return [(len(layers), each)]

    def end_backward(self, *, boundary: bool) -> None:
        """Backward of a micro batch is over; ``boundary``: the last before the optimizer's step."""

    def step(self, *, first: bool) -> None:
        """The optimizer's step; ``first``: its states do not exist yet."""
        raise NotImplementedError

    # Pieces that several engines use.

    def bytes_each(self, width: int) -> Collection[int]:
        """Bytes of every parameter at ``width`` bytes an element."""
        sizes = self.sizes
        return sizes.times(width) if isinstance(sizes, Sizes) else tuple([width * numel for numel in sizes])

    def build_on_host_and_move(self) -> None:
        """fp32 on the host, cast parameter by parameter, then moved (engine.py _configure_distributed_model).

        All that is built, trained or not; adapters are put in once weights are tied (peft/mapping.py).
        """
        ledger, built = self.ledger, self.run.built or self.run.model
        sizes = parameter_sizes(built)
        adapters = [4 * each.numel for each in built.parameters if is_adapter(each)] if self.run.built else []
        masks = Sizes.of([((self._buffer_bytes,), self._num_buffers)])
        ledger.alloc_many(states.HOST_MODEL, sizes.times(4))
        ledger.alloc_many(states.HOST_MODEL, masks)
        if masks:
            # mingpt/model.py: each block's mask is made of ones, before the block's MLP and all that follows.
            ledger.temporary(states.HOST_MODEL, max(masks[0] - 4 * _after_last_attention(self.run.model), 0))
        ledger.temporary(states.HOST_MODEL, max(4 * tied_elements(built) - sum(adapters), 0))
        if self.e != 4:
            # Parameter by parameter: each cast takes half of what it then frees.
            ledger.temporary(states.HOST_MODEL, _highest_cast(sizes, self.e))
            ledger.free_many(states.HOST_MODEL, sizes.times(4))
            ledger.alloc_many(states.HOST_MODEL, sizes.times(self.e))
        self._move(states.HOST_MODEL, _terms(built) if self.run.built else states.PARAMETERS, sizes.times(self.e))
        self._move(states.HOST_MODEL, states.BUFFERS, masks)

    @property
    def _num_buffers(self) -> int:
        return self.run.model.num_layers if self.run.model.has_mask_buffer else 0

    @property
    def _buffer_bytes(self) -> int:
        return 4 * self.run.model.max_position_embeddings**2

    def _move(self, source: Term, target: Term | Sequence[Term], sizes: Collection[int]) -> None:
        """``target``: of all, or of each."""
        # On the CPU device .to(device) returns the same tensor; elsewhere both exist for a moment.
        ledger, one_pool = self.ledger, self.run.kernels.one_pool
        if one_pool:
            ledger.free_many(source, sizes)
        if isinstance(target, Term):
            ledger.alloc_many(target, sizes)
        else:
            for term, size in zip(target, sizes, strict=True):
                ledger.alloc(term, size)
        if not one_pool:
            ledger.free_many(source, sizes)

    def copy_to_host(self, elements: int) -> None:
        """What a blocking copy from the device takes beside its fp32 result on the host: it arrives in the model's
        type, and is cast there (aten/src/ATen/native/cuda/Copy.cu, copy_kernel_cuda)."""
        if self.e != 4:
            self.ledger.temporary(states.HOST_TRANSIENT, self.e * elements)

    def placed(self, term: Term, *, pinned: bool) -> Term:
        """The term in pinned memory, or its pageable form where the configuration does not pin."""
        return term if pinned else _pageable(term)

    def pin(self, term: Term, size: int, *, pinned: bool, twin_exists: bool = False) -> None:
        """A host buffer that is made and then pinned: the pageable twin dies afterwards.

        ``twin_exists``: the caller has allocated the twin as HOST_TRANSIENT already.
        """
        ledger = self.ledger
        if not twin_exists:
            ledger.alloc(states.HOST_TRANSIENT, size)
        if pinned and self.run.kernels.pins_host_memory:
            ledger.alloc(term, size)
            ledger.free(states.HOST_TRANSIENT, size)
        else:
            ledger.free(states.HOST_TRANSIENT, size)
            ledger.alloc(self.placed(term, pinned=pinned), size)


def tied_elements(model: ModelShape) -> int:
    """Elements of the weight that a head is made with before it is tied to another's (mingpt/model.py; transformers'
    modeling_utils.py tie_weights); 0: none."""
    if model.decoder is None:
        return model.vocab_size * model.hidden_size if model.tied_module else 0
    return next((each.numel for each in model.decoder.before if each.name == model.decoder.tied), 0)


def _terms(model: ModelShape) -> list[Term]:
    """What each parameter on the device is."""
    return [states.PARAMETERS if each.trained else states.FROZEN_PARAMETERS for each in model.parameters]


def _highest_cast(sizes: tuple[int, ...], width: int) -> int:
    """How far the casts of fp32 parameters to ``width`` bytes rise over their start, one after the other (bytes)."""
    level = highest = 0
    for run, times in sizes.runs if isinstance(sizes, Sizes) else ((sizes, 1),):
        start = level
        for numel in run:
            highest = max(highest, level + width * numel)
            level -= (4 - width) * numel
        level = start + times * (level - start)  # each later one starts lower
    return highest


@lru_cache(maxsize=64)
def _after_last_attention(model: ModelShape) -> int:
    """Elements of minGPT's parameters that are made after the last block's attention."""
    later = [parameter for parameter in model.block_parameters if parameter.name.startswith(_AFTER_ATTENTION)]
    return sum(parameter.numel for parameter in (*later, *model.head_parameters))


_AFTER_ATTENTION = ("ln_2.", "mlp.")


@lru_cache(maxsize=64)
def _pageable(term: Term) -> Term:
    return Term(term.name, term.formula, term.source, PAGEABLE)
