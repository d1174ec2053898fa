"""The Python interface: what it returns is what the commands say, and its page's examples run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dsplan
from dsplan import api
from dsplan.catalogue import decoder_names, preset
from dsplan.errors import InputError
from dsplan.model import ModelShape

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = re.findall(r"```python\n(.*?)```", (DOCS / "api.md").read_text(encoding="utf-8"), re.DOTALL)
JOB = api.workload(sequence_length=512)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_page_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"docs/api.md, example {number + 1}", "exec"), {})


def test_the_page_has_examples_and_every_function() -> None:
    assert len(EXAMPLES) >= 4
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert all(f"api.{name}(" in page for name in api.__all__ if name != "Model")


def test_importing_the_package_loads_nothing_else() -> None:
    code = (
        "import sys, dsplan\n"
        "assert [name for name in sys.modules if name.startswith('dsplan')] == ['dsplan']\n"
        "from dsplan import api\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'accelerate', 'jsonschema', 'rich', 'typer'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_names_of_the_package() -> None:
    assert dsplan.ModelShape is ModelShape
    assert dsplan.api is api
    with pytest.raises(AttributeError, match="no attribute 'estimates'"):
        _ = dsplan.estimates


def test_a_model_from_everything_that_names_one(tmp_path: Path) -> None:
    shape = preset("qwen2.5-0.5b")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(shape.to_config()), encoding="utf-8")
    for source in ("Qwen2.5-0.5B", file, str(file), tmp_path, str(tmp_path), shape.to_config(), shape):
        assert api.model(source).parameters == shape.parameters
    assert api.model("gpt2").model_type == "mingpt"
    assert api.model("1.7B").num_layers == 15  # a preset's name before a count
    assert abs(api.model("3B").num_parameters / 3e9 - 1) < 0.03
    assert api.model("3B", vocab_size=100).vocab_size == 100
    with pytest.raises(InputError, match=r"did you mean qwen2\.5-0\.5b"):
        api.model("qwen2.5-0.5")


def test_an_estimate_is_of_what_was_asked() -> None:
    machines = api.cluster("h200", gpus=2, host_memory="1TB")
    found = api.estimate("gpt2", machines, JOB)
    assert {row.plan.name for row in found.plans} >= {"zero0", "zero2", "zero3-offload-ckpt"}
    best = api.recommend("gpt2", machines, JOB)
    assert best is not None
    assert best.plan.name == found.recommended
    (one,) = api.estimate("gpt2", machines, JOB, strategy="zero3", explain=True).plans
    assert one.plan.name == "zero3"
    assert sum(term.size_bytes for term in one.terms if term.place == "device") == one.device.peak_bytes


def test_what_is_emitted_is_estimated_alike(tmp_path: Path) -> None:
    machines = api.cluster("h200", gpus=2)
    config = api.emit("gpt2", machines, JOB)
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    (read,) = api.estimate("gpt2", machines, JOB, ds_config=file).plans
    best = api.recommend("gpt2", machines, JOB)
    assert best is not None
    assert read.device.peak_bytes == best.device.peak_bytes
    with pytest.raises(InputError, match="contradict"):
        api.estimate("gpt2", machines, JOB, ds_config=file, strategy="zero1")
    with pytest.raises(InputError, match="no strategy fits"):
        api.emit("gpt2", api.cluster("t4"), api.workload(micro_batch_size=4096))


def test_findings_have_their_place(tmp_path: Path) -> None:
    file = tmp_path / "ds_config.json"
    file.write_text('{\n "zero_optimisation": {"stage": 2}\n}', encoding="utf-8")
    places = {(finding.line, finding.severity) for finding in api.check(file)}
    assert (2, "error") in places


def test_the_largest_micro_batch_is_the_estimates() -> None:
    machines = api.cluster("a100-40gb", gpus=2)
    found = {each.strategy: each for each in api.fit("gpt2", machines, JOB)}
    assert found["zero2"].value >= 1
    with pytest.raises(InputError, match="device"):
        api.fit("gpt2", api.cluster(gpus=2), JOB)


def test_the_page_of_models_lists_the_catalogue() -> None:
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in decoder_names())


def test_a_model_by_its_name_on_the_hub() -> None:
    assert api.model("Qwen/Qwen2.5-7B") == api.model("qwen2.5-7b")
    with pytest.raises(InputError, match=r"model: .* the Hub is not asked; did you mean llama-3\.1-8b"):
        api.model("meta-llama/Llama-3.1-8B-Instruct")
