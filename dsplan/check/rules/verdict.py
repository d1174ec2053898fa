"""Whether it will fit; silent without ``--model`` and ``--gpu``."""

from __future__ import annotations

from collections.abc import Iterator

from dsplan.check.configuration import Configuration
from dsplan.check.finding import ERROR, WARNING, Finding, Rule
from dsplan.check.planned import plan_of, ranks_of
from dsplan.dsconfig.consumers import ACCELERATE, DEEPSPEED, HF
from dsplan.errors import InputError
from dsplan.units import format_bytes

DOES_NOT_FIT = Rule(
    id="DS811", name="does-not-fit", severity=ERROR, summary="The run needs more memory than the device or host has."
)
TIGHT = Rule(id="DS812", name="tight", severity=WARNING, summary="The run fits only if the allocator fragments little.")
NO_VERDICT = Rule(
    id="DS813", name="no-verdict", severity=WARNING, summary="Whether the run fits cannot be said, and why not."
)
RULES = (DOES_NOT_FIT, TIGHT, NO_VERDICT)


def fits(config: Configuration) -> Iterator[Finding]:
    """The estimate of ``dsplan estimate --ds-config``; what it does not model gets no verdict."""
    run = config.run
    if run.model is None or run.cluster is None or run.cluster.accelerator is None:
        return
    from dsplan import estimate as estimator  # 100 ms that only a verdict needs

    try:
        plan = plan_of(config, run.model)
        row = estimator.estimate(run.model, [plan], run.cluster, ladder=False).plans[0]
    except InputError as error:
        yield _none(config, str(error))
        return
    usable = run.cluster.accelerator.usable_bytes or 0
    need = f"needs {format_bytes(row.device.device_bytes)} of {format_bytes(usable)} on the device"
    if row.verdict == estimator.DOES_NOT_FIT:
        instead = "dsplan emit-config with the same model and GPUs, which writes one that fits"
        yield config.finding(DOES_NOT_FIT, "zero_optimization", f"this will not fit: {need}; {row.reason}", instead)
    elif row.verdict == estimator.TIGHT:
        yield config.finding(
            TIGHT, "zero_optimization", f"this is tight: {need}; {row.reason}", "a smaller micro batch"
        )


def _none(config: Configuration, why: str) -> Finding:
    consumer = config.run.consumer
    hint = "" if consumer == DEEPSPEED else " (DeepSpeed's own defaults are estimated)"
    if consumer in (HF, ACCELERATE) and why.startswith('"auto" in '):
        why = f'"auto" becomes what arguments say that are not in the file; dsplan estimate --for {consumer} takes them'
        hint = ""
    alone = config.run.world_size is None and ranks_of(config) == 1
    ranks = ", estimated for one rank (--world-size says how many)" if alone else ""
    return config.finding(NO_VERDICT, "zero_optimization", f"no verdict on memory{ranks}{hint}: {why}")


CHECKS = (fits,)
