"""Decoders whose layers differ, or of which not all is trained; and mixtures that are fetched whole."""

from __future__ import annotations

import pytest

from dsplan.activations import block_programs, layers_vary
from dsplan.catalogue import accelerator
from dsplan.engine import Run
from dsplan.engine.leaves import leaf_of, leaf_parameters, owner_of
from dsplan.engine.trained import trained_part
from dsplan.engine.varied import Varied
from dsplan.kernels import kernels_of
from dsplan.ledger import Ledger
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.tape import GRADIENT
from dsplan.walk import Walk
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig
from tests.families.test_decoders import shape, workload
from tests.tapes import EXACT, net

KERNELS = kernels_of(accelerator("h200"))


def run_of(model: ModelShape, stage: int, checkpointing: str = "none") -> Run:
    job = Workload(micro_batch_size=1, sequence_length=64, activation_checkpointing=checkpointing)
    plan = Plan(name="x", zero=ZeroConfig(stage=stage), workload=job)
    return Run(model=model, plan=plan, world_size=2, kernels=KERNELS, ledger=Ledger(KERNELS))


def steps_of(walk: Walk) -> list[dict[str, tuple[int, int]]]:
    walk.take()
    return [
        {name: (phase.level_bytes, phase.peak_bytes) for name, phase in step.phases.items()}
        for step in walk.ledger.steps
    ]


@pytest.mark.parametrize("checkpointing", ["none", "torch"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_the_walk_of_layers_that_may_differ_is_the_plain_one_where_they_do_not(
    name: str, stage: int, checkpointing: str
) -> None:
    model = shape(name, num_hidden_layers=3) if name != "gpt2" else shape(name, n_layer=3)
    varied, plain = (Walk(run_of(model, stage, checkpointing)) for _ in range(2))
    varied.varied = Varied(model, varied.run.plan, varied.engine, varied.kernels)
    assert plain.varied is None
    assert steps_of(varied) == steps_of(plain)


def test_dense_layers_come_first() -> None:
    model = shape("deepseek_v2", first_k_dense_replace=1, num_hidden_layers=3)
    assert layers_vary(model, workload())
    dense, *sparse = block_programs(model, workload(), EXACT)
    assert sparse[0] is sparse[1]
    found = {str(what) for kind, _, what in dense.backward if kind == GRADIENT}
    assert "mlp.gate_proj.weight" in found
    assert "mlp.experts.down_proj" not in found
    walk = Walk(run_of(model, 3))
    assert walk.varied is not None
    assert len(steps_of(walk)) > 2


def test_adapters_keep_no_inputs_of_frozen_layers() -> None:
    """Of the gated MLP gate, its activation and up, not their product; of the norms x in fp32 and 1/rms."""
    model = shape("llama", dsplan={"lora_rank": 4, "lora_targets": ["q_proj"]}, num_hidden_layers=3)
    first, second, _ = block_programs(model, workload(), EXACT)
    e, tokens, h, f, heads, groups, d, r = 2, 64, 64, 96, 4, 2, 16, 4
    attention = e * tokens * d * (2 * heads + 2 * groups) + 4 * 2 * heads * 32 + 16
    mlp = 3 * e * tokens * f
    norms = tokens * (4 * h + 4)
    adapter = e * tokens * (h + r)  # its input, and that of its second product
    assert net(second.forward) == 2 * norms + attention + mlp + adapter
    # Nothing before the first block is trained: its first norm keeps nothing.
    assert net(second.forward) - net(first.forward) == norms


def test_frozen_layers_keep_nothing_and_get_no_gradient() -> None:
    model = shape("llama", dsplan={"frozen_layers": 2}, num_hidden_layers=3, tie_word_embeddings=False)
    first, second, last = block_programs(model, workload(), EXACT)
    assert first is second
    assert net(first.forward) == 0
    assert not [what for kind, _, what in first.backward if kind == GRADIENT]
    assert len([what for kind, _, what in last.backward if kind == GRADIENT]) == len(model.block_parameters)


def test_what_the_engine_knows_is_what_is_trained() -> None:
    model = shape("llama", dsplan={"lora_rank": 4}, num_hidden_layers=3)
    part = trained_part(model)
    assert part.num_parameters == model.num_trained_parameters
    assert part != model
    assert trained_part(shape("llama")) == shape("llama")
    walked = steps_of(Walk(run_of(model, 2)))
    frozen = model.num_parameters - model.num_trained_parameters
    after = walked[-1]["step"][0]
    assert 2 * frozen < after < 2 * frozen + 20 * model.num_trained_parameters + 200 * 2**20


def test_what_is_not_trained_is_planned_at_stage_3_too() -> None:
    model = shape("llama", dsplan={"lora_rank": 4}, num_hidden_layers=3)
    frozen = model.num_parameters - model.num_trained_parameters
    assert frozen < steps_of(Walk(run_of(model, 3)))[-1]["step"][0]


def test_a_mixture_is_fetched_whole() -> None:
    model = shape("mixtral", num_hidden_layers=3)
    assert leaf_of(model) == "mlp"
    assert leaf_of(shape("llama")) == ""
    assert owner_of("model.layers.2.mlp.experts.down_proj", "mlp", "model.layers.") == "model.layers.2.mlp"
    assert owner_of("model.layers.2.self_attn.o_proj.weight", "mlp", "model.layers.").endswith(".2.self_attn.o_proj")
    names = [model.parameters[index].name.split(".", 3)[3] for index in sorted(leaf_parameters(model))]
    assert names == ["mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"] * 3
