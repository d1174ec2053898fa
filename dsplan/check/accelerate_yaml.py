"""accelerate's configuration files: the DeepSpeed section in them, or the file that it names.

Source: accelerate ``utils/dataclasses.py`` (``DeepSpeedPlugin.__post_init__``, ``_deepspeed_config_checks``) and
``commands/launch.py`` (every key of ``deepspeed_config`` becomes an argument; unknown ones are never read).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dsplan.check import yaml_tree
from dsplan.check.configuration import Configuration, Run
from dsplan.check.contents import Source, read_plain
from dsplan.check.finding import Finding
from dsplan.check.rules.accelerate import CONFLICT, NO_FILE, UNKNOWN_KEY
from dsplan.check.rules.text import text_finding
from dsplan.check.tree import Lines, Member, Scalar, Section
from dsplan.dsconfig.consumers import ACCELERATE
from dsplan.errors import nearest

_SECTION = "deepspeed_config"
_FILE = "deepspeed_config_file"
_STAGE3_SAVE = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
#: Keys of the section that are settings of DeepSpeed.
_SETTINGS = {
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "gradient_clipping",
    "zero_stage": "zero_optimization.stage",
    "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
    "offload_param_device": "zero_optimization.offload_param.device",
    "offload_optimizer_nvme_path": "zero_optimization.offload_optimizer.nvme_path",
    "offload_param_nvme_path": "zero_optimization.offload_param.nvme_path",
    "zero3_save_16bit_model": _STAGE3_SAVE,
}
#: Keys that are about the launch.
_OTHERS = (
    *(_FILE, "deepspeed_hostfile", "deepspeed_exclusion_filter", "deepspeed_inclusion_filter"),
    *("deepspeed_multinode_launcher", "deepspeed_moe_layer_cls_names", "zero3_init_flag", "zero3_save_16bit_model"),
)


def read_accelerate(path: Path, text: str, run: Run) -> Source:
    """The DeepSpeed configuration that accelerate makes of ``path``, or of the file that it names."""
    lines = Lines(text)
    root, problems = yaml_tree.parse(text, _SECTION)
    findings = [text_finding(path, lines, problem, ACCELERATE) for problem in problems]
    section = None if root is None else root.member(_SECTION)
    if root is None or section is None or not isinstance(section.node, Section):
        return Source(configurations=(), findings=tuple(findings))  # another YAML file, or a run without DeepSpeed
    run = replace(run, consumer=ACCELERATE)
    settings = section.node
    config = Configuration(
        path=path,
        lines=lines,
        root=_as_deepspeed(root, settings),
        run=run,
        complete=False,
        alone=False,
        title=path.stem,
    )
    findings += _unknown(config, settings)
    named = settings.member(_FILE)
    if named is None or not isinstance(named.node, Scalar) or not isinstance(named.node.value, str):
        return Source(configurations=(config,), findings=tuple(findings))
    findings += _conflicts(config, root, settings)
    target = _target(path, named.node.value)
    if target is None:
        message = f"{_FILE} names {named.node.value}, which is neither here nor beside this file"
        findings.append(
            config.finding(NO_FILE, _FILE, message, "the path from where accelerate is started", member=named)
        )
        return Source(configurations=(), findings=tuple(findings))
    found = read_plain(target, run)
    return Source(configurations=found.configurations, findings=(*findings, *found.findings))


def _as_deepspeed(root: Section, settings: Section) -> Section:
    """The keys of the YAML file where DeepSpeed's stand, with their places in the YAML file."""
    tree: dict[str, object] = {}
    for member in settings.members:
        if member.key in _SETTINGS:
            _put(tree, _SETTINGS[member.key], member)
    precision = root.member("mixed_precision")
    if precision is not None and isinstance(precision.node, Scalar) and precision.node.value in ("fp16", "bf16"):
        on = Scalar(value=True, offset=precision.node.offset, end=precision.node.end)
        enabled = Member(key="enabled", offset=precision.offset, end=precision.end, node=on)
        _put(tree, f"{precision.node.value}.enabled", enabled)
    return _section(tree, settings.offset)


def _put(tree: dict[str, object], path: str, member: Member) -> None:
    *sections, key = path.split(".")
    for name in sections:
        below = tree.setdefault(name, {})
        assert isinstance(below, dict)  # no setting is a section
        tree = below
    tree[key] = member


def _section(tree: dict[str, object], offset: int) -> Section:
    members = []
    for key, value in tree.items():
        if isinstance(value, Member):
            members.append(Member(key=key, offset=value.offset, end=value.end, node=value.node))
        elif isinstance(value, dict):
            below = _section(value, offset)
            start = below.members[0].offset
            members.append(Member(key=key, offset=start, end=start, node=below))
    return Section(members=tuple(members), offset=offset, end=offset)


def _unknown(config: Configuration, settings: Section) -> Iterator[Finding]:
    for member in settings.members:
        if member.key not in _SETTINGS and member.key not in _OTHERS:
            near = nearest(member.key, (*_SETTINGS, *_OTHERS), limit=1)
            message = f"accelerate reads no key {member.key} in {_SECTION}"
            yield config.finding(UNKNOWN_KEY, member.key, message, near[0] if near else "remove it", member=member)


def _conflicts(config: Configuration, root: Section, settings: Section) -> Iterator[Finding]:
    precision = root.member("mixed_precision")
    if precision is not None and isinstance(precision.node, Scalar) and precision.node.value is not None:
        message = f"accelerate refuses mixed_precision beside {_FILE}"
        yield config.finding(CONFLICT, "mixed_precision", message, "fp16 or bf16 in the file", member=precision)
    for member in settings.members:
        if member.key in _SETTINGS:
            message = f"accelerate refuses {member.key} beside {_FILE}"
            yield config.finding(CONFLICT, member.key, message, f"{_SETTINGS[member.key]} in the file", member=member)


def _target(path: Path, name: str) -> Path | None:
    candidates = (Path(name), path.parent / name)
    try:
        return next((found for found in candidates if found.is_file()), None)
    except (OSError, ValueError):  # too long, or with a character that no name has
        return None
