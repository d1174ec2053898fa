"""Training: one rank of a run from the initialisation on, its engine between the stretches of the model's programs."""

from __future__ import annotations

from dsplan.activations import INPUTS, Program
from dsplan.decoders.classes import FUSE_BIAS
from dsplan.engine import engine_for, programs_for
from dsplan.engine.base import Run
from dsplan.engine.checkpoints import checkpoints_of
from dsplan.engine.gathering import MICRO_BATCHES, acts
from dsplan.engine.outline import (
    BACKWARD,
    BLOCK,
    EMBEDDING,
    FORWARD,
    HEAD,
    cut_programs,
    moment_of_block,
    tokens_bytes,
)
from dsplan.engine.stretches import Stretch, first_of_block, gradient_indices
from dsplan.engine.varied import AUTOGRADS_THREAD, trained_run, varied_of
from dsplan.ledger import Term
from dsplan.overhead import LT_WORKSPACE, WORKSPACE
from dsplan.tape import ALLOC, FREE, GRADIENT, PRODUCT, Event

#: Steps that the walk takes: the first (no optimizer states yet), and enough more to be steady
#: (stage 3 records its trace in the first and prefetches from the second on).
FIRST_STEP = "first step"
STEADY_STATE = "steady state"
#: Stage 3 puts a linear layer of its own in the place of torch's (deepspeed/runtime/zero/linear.py).
STAGE_OF_OWN_LINEAR = 3


class Walk:
    """One rank of a run, walked: its engine, and the model's programs as stretches."""

    def __init__(self, run: Run) -> None:
        whole, run = run, trained_run(run)  # what the programs are of, and what the engine knows
        self.run = run
        self.ledger = run.ledger
        self.engine = engine_for(run)
        zero = run.plan.zero
        own_linear = zero.stage == STAGE_OF_OWN_LINEAR and zero.memory_efficient_linear
        fuses = run.model.decoder is not None and run.model.decoder.causal_lm in FUSE_BIAS
        self.adds_bias = run.model.bias and (fuses or not own_linear)
        self.kernels = kernels = run.kernels.of_programs(zero3_linear=own_linear)
        self.pieces = programs_for(whole, kernels)
        self.varied = varied_of(whole, self.engine, kernels)
        self.cut = cut_programs(run.model, self.pieces, self.engine.follows_gradients, self.engine.follows_modules)
        self.embedding, self.block, self.head = [
            (self.cut.pieces[piece, FORWARD], self.cut.pieces[piece, BACKWARD]) for piece in (EMBEDDING, BLOCK, HEAD)
        ]
        self.micro_batches = min(run.plan.workload.gradient_accumulation_steps, MICRO_BATCHES)
        self.workspaces = 0
        #: Whether blocks run again on autograd's thread, with products that add a bias; and whether one has.
        self.recomputes = self.adds_bias and run.plan.workload.activation_checkpointing != "none"
        self.recomputed = False
        # What happens to the inputs of checkpointed blocks depends on the layer: blocks are not alike at their ends.
        self.checkpoints = checkpoints_of(run)

    def take(self) -> None:
        self.begin()
        self.train()

    def begin(self) -> None:
        """The initialisation, and the first step up to its backward pass."""
        ledger = self.ledger
        ledger.begin_step("init")
        ledger.begin("init")
        ledger.moment = "building the model"
        self.engine.initialise()
        ledger.end()
        ledger.begin_step(FIRST_STEP)
        self._begin_micro_batch(0)

    def train(self) -> None:
        """All that comes after :meth:`begin`."""
        self._step(first=True)
        for number in range(1, self.engine.num_steps):
            last = number == self.engine.num_steps - 1
            self.ledger.begin_step(STEADY_STATE if last else f"step {number + 1}")
            self._begin_micro_batch(0)
            self._step(first=False)

    def _step(self, *, first: bool) -> None:
        """A step whose first micro batch has begun."""
        self._passes()
        self._update(first=first)

    def _begin_micro_batch(self, number: int) -> None:
        self.engine.boundary = number == self.micro_batches - 1
        self._forward()

    def _passes(self) -> None:
        """Forward and backward of every micro batch, of which the first has begun."""
        ledger, engine = self.ledger, self.engine
        for micro_batch in range(self.micro_batches):
            if micro_batch:
                ledger.begin("step")
                ledger.end()
                self._begin_micro_batch(micro_batch)
            self._backward()
            engine.end_backward(boundary=engine.boundary)
            self._drop_inputs()
            ledger.end()

    def _update(self, *, first: bool) -> None:
        self.ledger.begin("step")
        self.engine.step(first=first)
        self.ledger.end()

    def _workspace(self, threads: int) -> None:
        # The forward thread's appears with its first product, autograd's thread brings a second one. Products with a
        # bias are the forward's; autograd's thread has them where it recomputes (_backward).
        run = self.run
        while self.workspaces < threads:
            self.workspaces += 1
            self._once(WORKSPACE, run.kernels.workspace_bytes)
            if self.adds_bias and self.workspaces == 1:
                self._once(LT_WORKSPACE, run.kernels.lt_workspace_bytes)

    def _once(self, term: Term, size: int) -> None:
        """A tensor that stays to the end appears."""
        self.ledger.alloc(term, size)

    def _forward(self) -> None:
        ledger = self.ledger
        ledger.begin("forward")
        ledger.moment = "embedding"
        self._take_inputs()
        self.engine.begin_forward()
        self._replay(EMBEDDING, FORWARD, 0)
        self._workspace(1)
        self._blocks(FORWARD, range(self.run.model.num_layers))
        ledger.moment = "head and loss"
        self._replay(HEAD, FORWARD, 0)
        ledger.end()

    def _backward(self) -> None:
        ledger = self.ledger
        ledger.begin("backward")
        ledger.moment = "backward of the loss and the head"
        self._replay(HEAD, BACKWARD, 0)
        if self.recomputes and not self.recomputed:
            self.recomputed = True
            self._once(LT_WORKSPACE, self.run.kernels.lt_workspace_bytes)
        self._blocks(BACKWARD, range(self.run.model.num_layers)[::-1])
        ledger.moment = "backward of the embedding"
        self._replay(EMBEDDING, BACKWARD, 0)

    def _take_inputs(self) -> None:
        for _ in range(2):
            self.ledger.alloc(INPUTS, tokens_bytes(self.run.plan.workload))

    def _drop_inputs(self) -> None:
        for _ in range(2):
            self.ledger.free(INPUTS, tokens_bytes(self.run.plan.workload))

    def _blocks(self, direction: int, layers: range) -> None:
        for layer in layers:
            self._block(direction, layer)

    def _block(self, direction: int, layer: int) -> None:
        self.ledger.moment = moment_of_block(direction, layer)
        if self.checkpoints is None:
            self._replay(BLOCK, direction, layer)
        elif direction == FORWARD:
            self.checkpoints.before_forward(layer)
            self._replay(BLOCK, direction, layer)
            self.checkpoints.after_forward(layer)
        else:
            self.checkpoints.before_backward(layer)
            self._replay(BLOCK, direction, layer)

    def _stretches(self, piece: str, direction: int) -> tuple[Stretch, ...]:
        return {EMBEDDING: self.embedding, BLOCK: self.block, HEAD: self.head}[piece][direction]

    def _replay(self, piece: str, direction: int, layer: int) -> None:
        if self.varied is not None:
            one, prefix = self.varied.of_layer(layer) if piece == BLOCK else (getattr(self.pieces, piece), "")
            self.varied.replay(one, prefix, self._workspace, backward=direction == BACKWARD, cut=piece == HEAD)
            return
        if self.ledger.detailed:
            program: Program = getattr(self.pieces, piece)
            self._replay_events(program.forward if direction == FORWARD else program.backward, layer)
            return
        stretches = self._stretches(piece, direction)
        ledger, engine = self.ledger, self.engine
        base = first_of_block(self.run.model, layer)
        for rise, net, kind, index in stretches:
            level = ledger.level  # as rise_and_settle does: nothing else is done so often
            if level + rise > ledger.peak:
                ledger.reach(level + rise)
            ledger.level = level + net
            if kind == GRADIENT:
                engine.gradient(base + index if index >= 0 else ~index)
            elif kind == PRODUCT:
                self._workspace(AUTOGRADS_THREAD)
            elif kind > 0:
                engine.module(kind)

    def _replay_events(self, events: tuple[Event, ...], layer: int) -> None:
        ledger, engine = self.ledger, self.engine
        indices = gradient_indices(self.run.model)
        base = first_of_block(self.run.model, layer)
        for kind, size, what in events:
            if kind == ALLOC:
                assert isinstance(what, Term)
                ledger.event(what, size, 1)
            elif kind == FREE:
                assert isinstance(what, Term)
                ledger.event(what, -size, -1)
            elif kind == GRADIENT:
                assert isinstance(what, str)
                index = indices[what]
                engine.gradient(base + index if index >= 0 else ~index)
            elif kind == PRODUCT:
                self._workspace(AUTOGRADS_THREAD)
            elif engine.follows_modules and acts(self.run.model, kind, what):
                engine.module(kind)
