"""An adapter's first matrix: a parameter of its own layer, and an external one of the adapted layer."""

from __future__ import annotations

from dsplan.engine.coordinators import coordinator_of
from dsplan.engine.frozen import FrozenCoordinator
from dsplan.engine.gathering import marks_and_saving
from dsplan.engine.hooks import Change, Mark
from dsplan.kernels import Kernels
from dsplan.tape import ENTER, LEAVE
from dsplan.workload import Workload
from dsplan.zero import ZeroConfig
from tests.families.test_decoders import shape

KERNELS = Kernels(block_bytes=1)
MODEL = shape("llama", dsplan={"lora_rank": 4, "lora_targets": ["q_proj"]}, num_hidden_layers=2)
ZERO = ZeroConfig(stage=3, stage3_param_persistence_threshold=0, stage3_prefetch_bucket_size=0)
ADAPTED = "model.layers.1.self_attn.q_proj"
FIRST = next(i for i, each in enumerate(MODEL.parameters) if each.name == f"{ADAPTED}.lora_A.default.weight")


def _marks() -> list[Mark]:
    return marks_and_saving(MODEL, Workload(sequence_length=1), KERNELS, saves_weights=False)[0]


def test_the_adapted_layer_has_it_too() -> None:
    modules = {module.name: module for _, module in _marks()}
    assert modules[ADAPTED].parameters == (FIRST,)
    assert modules[f"{ADAPTED}.lora_A.default"].parameters == (FIRST,)
    assert not modules["model.layers.1.self_attn"].parameters


def test_it_is_fetched_with_the_adapted_layer_once_its_type_was_asked_for() -> None:
    """parameter_offload.py ZeROOrderedDict.__getitem__: in the first forward pass the layer does not have it yet."""
    assert coordinator_of(MODEL, ZERO) is FrozenCoordinator
    coordinator, marks = FrozenCoordinator(MODEL, ZERO, 2, 2, KERNELS), _marks()
    matrix = 2 * MODEL.parameters[FIRST].numel

    def rises() -> dict[tuple[int, str], Change]:
        found: dict[tuple[int, str], Change] = {}
        for (kind, module), change in zip(marks, coordinator.run(marks), strict=True):
            found.setdefault((kind, module.name), change)  # the first time: in the forward pass
        coordinator.leftovers()
        coordinator.partition_all()
        return found

    first, second = rises(), rises()
    assert first[ENTER, ADAPTED] == (0, 0)
    assert first[ENTER, f"{ADAPTED}.lora_A.default"] == (matrix, matrix)
    assert second[ENTER, ADAPTED] == (matrix, matrix)
    assert second[ENTER, f"{ADAPTED}.lora_A.default"] == (0, 0)
    assert second[LEAVE, f"{ADAPTED}.lora_A.default"] == (0, 0)  # reused within the distance, and the layer has it
