"""The document is valid under its schema and holds DeepSpeed's own keys."""

from __future__ import annotations

import jsonschema
import pytest

from dsplan.report.document import estimate_document
from dsplan.schemas import schema
from dsplan.workload import OPTIMIZERS
from tests.report import estimates


def test_the_schema_is_one() -> None:
    for name in ("estimate", "emit_config"):
        jsonschema.Draft202012Validator.check_schema(schema(name))


@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("memory_gib", [None, 24, 80])
def test_documents_are_valid(memory_gib: int | None, explain: bool) -> None:
    estimate = estimates.hand_made(memory_gib=memory_gib, explain=explain)
    document = estimate_document(estimate, inferred="how" if explain else None)
    jsonschema.validate(document, schema("estimate"))
    assert len(document["plans"]) == len(estimate.plans)


def test_every_optimizer_that_can_be_planned_is_in_the_schemas() -> None:
    estimated = schema("estimate")["properties"]["workload"]["properties"]["optimizer"]["enum"]
    configuration = schema("measurement")["properties"]["configuration"]["properties"]
    recorded = configuration["workload"]["properties"]["optimizer"]["enum"]
    assert set(estimated) == set(recorded) == set(OPTIMIZERS)


def test_a_plan() -> None:
    document = estimate_document(estimates.hand_made(explain=True))
    [plan] = [plan for plan in document["plans"] if plan["name"] == "zero3-offload-ckpt"]
    assert plan["zero"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert plan["zero"]["stage3_max_live_parameters"] == 10**9
    assert plan["activation_checkpointing"] == "torch"
    assert set(plan["device"]["phases"]) == {"init", "forward", "backward", "step"}
    assert set(plan["device"]["first_step"]) == {"forward", "backward", "step"}
    on_device = sum(term["size_bytes"] for term in plan["terms"] if term["place"] == "device")
    assert on_device == plan["device"]["peak_bytes"]


def test_a_number_that_is_no_integer_is_refused() -> None:
    document = estimate_document(estimates.hand_made())
    document["plans"][0]["device"]["peak_bytes"] = 1.5
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema("estimate"))
