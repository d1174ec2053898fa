"""What the installed DeepSpeed reads of a configuration, found by asking it; run as a module, it prints JSON.

Three ways, since DeepSpeed has three: the fields of its pydantic models, walked; the keys that its parser asks a
dictionary for, recorded while it parses; and the keys that the engine reads later, taken from the code.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

_MISSING = "<no default>"
#: The attribute of DeepSpeedConfig that holds a pydantic model -> its section.
MODELS = {
    "zero_config": "zero_optimization",
    "monitor_config": "",
    "comms_logger": "comms_logger",
    "float16_config": "fp16",
    "bfloat16_config": "bf16",
    "hybrid_engine": "hybrid_engine",
    "compile_config": "compile",
    "timers_config": "timers.throughput",
    "tensor_parallel_config": "tensor_parallel",
    "weight_quantization_config": "weight_quantization",
}
#: Sections that the parser looks into only where they are there, as they have to be for that.
_SECTIONS: dict[str, Any] = {
    "$schema": "./deepspeed_config.schema.json",
    "zero_optimization": {},
    "optimizer": {"type": "AdamW", "params": {}},
    "scheduler": {"type": "WarmupLR", "params": {}},
    "activation_checkpointing": {},
    "aio": {},
    "flops_profiler": {},
    "comms_logger": {},
    "timers": {"throughput": {}},
    "torch_autocast": {},
    "data_types": {},
    "checkpoint": {"parallel_write": {}, "writer": {}},
    "autotuning": {"model_info": {}},
    "expert_parallel": {"enabled": False},
    "weight_quantization": {},
    "data_efficiency": {
        "data_sampling": {
            "curriculum_learning": {"enabled": True, "curriculum_metrics": {}},
            "dynamic_batching": {"enabled": True, "max_tokens": 1},
        },
        "data_routing": {"random_ltd": {"enabled": True}},
    },
}
_DATA = "runtime/data_pipeline/"
#: Code that reads a section after the parser: file, the names that hold the section, the section.
_LATER = (
    ("__init__.py", ("config",), ""),
    ("runtime/pipe/engine.py", ("pipeline",), "pipeline"),
    ("module_inject/autotp_config.py", ("config_dict", "spec_dict"), "tensor_parallel.partition_config"),
    (_DATA + "curriculum_scheduler.py", ("config", "s_state"), "data_efficiency"),
    (_DATA + "data_sampling/data_sampler.py", ("data_efficiency_config",), "data_efficiency"),
    (_DATA + "data_sampling/variable_batch_size_and_lr.py", ("batching_config",), "data_efficiency"),
    (_DATA + "data_routing/scheduler.py", ("config", "config_schedule", "s_state"), "data_efficiency"),
    (_DATA + "data_routing/basic_layer.py", ("config",), "data_efficiency"),
    ("runtime/engine.py", ("random_ltd_config",), "data_efficiency"),
)


class Recorder(dict[str, Any]):
    """A section that writes down what it is asked for."""

    def __init__(self, path: str, log: dict[str, dict[str, list[Any]]], section: dict[str, Any]) -> None:
        self.path, self.log = path, log
        for key, value in section.items():
            below = f"{path}.{key}" if path else key
            self[key] = Recorder(below, log, value) if isinstance(value, dict) else value

    def __copy__(self) -> Recorder:
        made = Recorder(self.path, self.log, {})
        made.update(self.items())
        return made

    def asked(self, key: str, default: Any = _MISSING) -> None:
        defaults = self.log.setdefault(self.path, {}).setdefault(key, [])
        if default is not _MISSING and default not in defaults:
            defaults.append(default)

    def __contains__(self, key: object) -> bool:
        self.asked(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked(key, default)
        return super().get(key, default)

    def keys(self) -> Any:
        return _Keys(self)


class _Keys(list[str]):
    def __init__(self, section: Recorder) -> None:
        super().__init__(dict.keys(section))
        self.section = section

    def __contains__(self, key: object) -> bool:
        return key in self.section


def recorded(section: dict[str, Any], log: dict[str, dict[str, list[Any]]]) -> Any:
    """Parse ``section`` and record into ``log``: section -> key -> the defaults that were asked with."""
    from deepspeed.runtime import config_utils
    from deepspeed.runtime.config import DeepSpeedConfig

    originals = {name: getattr(config_utils, name) for name in ("get_scalar_param", "get_dict_param")}

    def asking(original: Any) -> Any:
        def ask(param_dict: Any, name: str, default: Any) -> Any:
            if isinstance(param_dict, Recorder):
                param_dict.asked(name, default)
            return original(param_dict, name, default)

        return ask

    for module in [module for name, module in sys.modules.items() if name.startswith("deepspeed")]:
        for name, original in originals.items():
            if vars(module).get(name) is original:
                setattr(module, name, asking(original))
    return DeepSpeedConfig(Recorder("", log, {"train_batch_size": 8, **section}))


def models(config: Any) -> dict[str, Any]:
    """The pydantic models that ``config`` holds, by attribute, whether :data:`MODELS` knows them or not."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    held = {**vars(config), **vars(config.comms_config)}
    return {name: type(value) for name, value in held.items() if isinstance(value, DeepSpeedConfigModel)}


def fields(model: Any, section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field below ``model``, under each of its names: types, default, bounds, allowed values."""
    from pydantic_core import PydanticUndefined

    for name, field in model.model_fields.items():
        default: Any = _MISSING if field.default is PydanticUndefined else field.default
        if field.default_factory is not None:
            default = field.default_factory()
        nested = [kind for kind in _kinds(field.annotation) if hasattr(kind, "model_fields")]
        facts: dict[str, Any] = {
            "types": sorted({_json_type(kind) for kind in _kinds(field.annotation)}),
            "bounds": {k: getattr(m, k) for m in field.metadata for k in ("gt", "ge", "lt", "le") if hasattr(m, k)},
            "values": sorted(value for kind in _kinds(field.annotation) for value in _values(kind)),
        }
        if not nested and _plain(default):
            facts["default"] = default
        for key in dict.fromkeys((field.alias or name, name)):
            path = f"{section}.{key}" if section else key
            yield path, facts
            for below in nested:
                yield from fields(below, path)


def _kinds(annotation: Any) -> list[Any]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return [kind for part in typing.get_args(annotation) for kind in _kinds(part)] if union else [annotation]


def _json_type(kind: Any) -> str:
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return "string"
    if not isinstance(origin, type) or origin is object:
        return "any"
    if hasattr(origin, "model_fields"):
        return "object"
    table = ((bool, "boolean"), (int, "integer"), (float, "number"), ((str, Path), "string"))
    more = (((list, tuple), "array"), (dict, "object"), (type(None), "null"))
    return next((name for types_, name in (*table, *more) if issubclass(origin, types_)), origin.__name__)


def _values(kind: Any) -> list[Any]:
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    return list({member.value for member in kind}) if isinstance(kind, type) and issubclass(kind, Enum) else []


def _plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return value != _MISSING


def read_later() -> dict[str, list[str]]:
    """Section -> the keys that code reads below it after the parser is done."""
    import deepspeed

    home = Path(deepspeed.__file__).parent
    found: dict[str, list[str]] = {}
    for file, holders, section in _LATER:
        path = home / file
        package = "deepspeed." + file.removesuffix(".py").replace("/", ".") if file != "__init__.py" else "deepspeed"
        names = vars(importlib.import_module(package))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            key = _key(node, holders, names)
            if key is not None and key not in found.setdefault(section, []):
                found[section].append(key)
    return found


def _key(node: ast.AST, holders: tuple[str, ...], names: dict[str, Any]) -> str | None:
    """The key of ``holder[key]``, ``holder.get(key)`` or ``key in holder``."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        base, key = node.value, node.slice
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
        base, key = node.func.value, node.args[0]
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
        base, key = node.comparators[0], node.left
    else:
        return None
    while isinstance(base, ast.Subscript):
        base = base.value
    holder = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
    value = names.get(key.id) if isinstance(key, ast.Name) else getattr(key, "value", None)
    return value if holder in holders and isinstance(value, str) else None


def optimizer_arguments() -> list[str]:
    """What the optimizers that DeepSpeed makes from ``optimizer.params`` take, and what the engine takes out of it."""
    import deepspeed
    import torch
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lamb import FusedLamb

    engine, constants = deepspeed.runtime.engine.DeepSpeedEngine, vars(deepspeed.runtime.engine)
    kinds = (FusedAdam, DeepSpeedCPUAdam, FusedLamb, DeepSpeedCPUAdagrad, torch.optim.SGD, torch.optim.AdamW)
    taken = {name for kind in kinds for name in inspect.signature(kind).parameters}
    source = inspect.getsource(engine._muon_param_groups) + inspect.getsource(engine.get_optimizer_configuration)
    quoted = re.findall(r"""["'](\w+)["']""", source)
    return sorted({*taken, *quoted, *engine._MUON_HALF_KEYS, constants["TORCH_ADAM_PARAM"], constants["ADAM_W_MODE"]})


def facts() -> dict[str, Any]:
    """All that :mod:`tests.dsconfig.test_schema_complete` compares with the schema."""
    from deepspeed.runtime.config import get_pipeline_config

    log: dict[str, dict[str, list[Any]]] = {}
    config = recorded(_SECTIONS, log)
    recorded({"zero_optimization": True}, log)  # allgather_size is read with the old form only
    recorded({"bfloat16": {}}, log)
    for key, default in get_pipeline_config({}).items():
        log.setdefault("pipeline", {})[key] = [default]
    found = models(config)
    return {
        "read": {section: {k: [d for d in ds if _plain(d)] for k, ds in keys.items()} for section, keys in log.items()},
        "unmapped": sorted(set(found) - set(MODELS)),
        "fields": {path: f for name in MODELS if name in found for path, f in fields(found[name], MODELS[name])},
        "later": read_later(),
        "optimizer_arguments": optimizer_arguments(),
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(facts()), encoding="utf-8")
