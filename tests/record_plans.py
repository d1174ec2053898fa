"""What a record of a real run says of its plan, and whether its host memory could be foretold."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from dsplan.dsconfig.ddp import ddp_plan, is_ddp
from dsplan.dsconfig.read import read_ds_config
from dsplan.measurement import Measurement
from dsplan.modelfile import shape_from_config
from dsplan.plan import Plan
from dsplan.verdict.heap import kept_by_malloc

#: Of a rank's resident memory: less than this makes no difference to what is compared.
_LITTLE = 0.01


def plan_of(measurement: Measurement, name: str) -> Plan:
    """What the record's DeepSpeed configuration says, read as ``dsplan estimate --ds-config`` reads it."""
    configuration = measurement.configuration
    if is_ddp(configuration.ds_config):
        return ddp_plan(configuration.ds_config, configuration.workload, name)
    with tempfile.TemporaryDirectory() as folder:
        ds_config = Path(folder) / f"{name}.json"
        ds_config.write_text(json.dumps(configuration.ds_config), encoding="utf-8")
        return read_ds_config(
            ds_config,
            world_size=configuration.world_size,
            sequence_length=configuration.workload.sequence_length,
            activation_checkpointing=configuration.workload.activation_checkpointing,
        ).plan


def host_is_open(measurement: Measurement, plan: Plan, name: str) -> bool:
    """Whether more than 1 % of the resident memory may be what malloc keeps of the model: there are two numbers then.

    Records of stages 0 to 2 from before ``verify`` fixed malloc's threshold (:mod:`dsplan.heap_threshold`).
    """
    host = measurement.worst_rank.host
    model = shape_from_config(dict(measurement.configuration.model), where=name)
    kept = kept_by_malloc(model, plan, threshold=host.mmap_threshold_bytes)
    return kept > _LITTLE * (host.peak_rss_bytes or host.rss_bytes)
