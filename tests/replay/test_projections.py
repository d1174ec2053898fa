"""Query, key and value apart: the same parameters, three hooks for one, three gradients for one."""

from __future__ import annotations

from dsplan.engine import Run
from dsplan.engine.coordinator import Module
from dsplan.ledger import Ledger
from dsplan.operators import PARAMETER_GRADIENT
from dsplan.partition import parameter_sizes
from dsplan.plan import Plan
from dsplan.replay.deepspeed_0_3_13 import OldStage3
from dsplan.replay.projections import apart, hooks, together
from dsplan.tape import ENTER, ENTER_BACKWARD, LEAVE, LEAVE_BACKWARD
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig
from tests.tapes import EXACT, shape

MODEL = shape()
H = MODEL.hidden_size
FUSED = next(index for index, parameter in enumerate(MODEL.parameters) if parameter.name.endswith("c_attn.weight"))


def test_the_parameters_are_the_same_and_those_of_attention_three_times_as_many() -> None:
    separated = apart(MODEL)
    assert sum(separated.sizes) == MODEL.num_parameters
    assert len(separated.sizes) == len(parameter_sizes(MODEL)) + MODEL.num_layers * 4
    # Weight and bias of one after the other, as modules have them.
    assert separated.sizes[FUSED : FUSED + 6] == (H * H, H) * 3
    assert separated.pieces[FUSED] == (FUSED, FUSED + 2, FUSED + 4)
    assert separated.pieces[FUSED + 1] == (FUSED + 1, FUSED + 3, FUSED + 5)
    assert sorted(piece for pieces in separated.pieces for piece in pieces) == list(range(len(separated.sizes)))
    assert together(MODEL).sizes == parameter_sizes(MODEL)


def test_three_layers_work_one_after_the_other_and_backwards_in_the_other_order() -> None:
    module = Module("transformer.h.0.attn.c_attn", (FUSED, FUSED + 1))
    marks = [(kind, module) for kind in (ENTER, LEAVE, ENTER_BACKWARD, LEAVE_BACKWARD)]
    found = [[(kind, one.name.rpartition(".")[2]) for kind, one in group] for group in hooks(marks, apart(MODEL))]
    assert found == [
        [(ENTER, "key"), (LEAVE, "key"), (ENTER, "query"), (LEAVE, "query"), (ENTER, "value")],
        [(LEAVE, "value")],
        [
            (ENTER_BACKWARD, "value"),
            (LEAVE_BACKWARD, "value"),
            (ENTER_BACKWARD, "query"),
            (LEAVE_BACKWARD, "query"),
            (ENTER_BACKWARD, "key"),
        ],
        [(LEAVE_BACKWARD, "key")],
    ]
    entered = hooks(marks, apart(MODEL))[0][0][1]
    assert entered.parameters == (FUSED, FUSED + 1)


def test_a_layer_that_is_not_attentions_stays_one() -> None:
    module = Module("transformer.h.0.mlp.c_fc", (FUSED + 6, FUSED + 7))
    ((mark,),) = hooks([(ENTER, module)], together(MODEL))
    assert (mark[0], mark[1].name, mark[1].parameters) == (ENTER, module.name, module.parameters)


def test_a_gradient_that_alone_exceeds_the_bucket_fits_it_in_three() -> None:
    """The fused gradient of 3h² elements waits outside a bucket of 2h²; those of h² are moved into it."""

    def left_by_the_gradient(*rules: str) -> int:
        zero = ZeroConfig(stage=3, reduce_bucket_size=2 * H * H, overlap_comm=True)
        plan = Plan(name="old", zero=zero, workload=Workload(sequence_length=2, precision="fp16"))
        ledger = Ledger(EXACT)
        ledger.begin_step("init")
        ledger.begin("init")
        engine = OldStage3(
            Run(model=MODEL, plan=plan, world_size=2, kernels=EXACT, ledger=ledger), frozenset({"prefetching", *rules})
        )
        engine.initialise()
        before = ledger.level
        ledger.alloc(PARAMETER_GRADIENT, 2 * 3 * H * H)
        engine.gradient(FUSED)
        return ledger.level - before

    assert left_by_the_gradient() == 2 * 3 * H * H
    assert left_by_the_gradient("projections") == 0
