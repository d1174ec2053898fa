"""Imports run one way, files stay small, and planning loads neither torch nor DeepSpeed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dsplan", "runner", "mingpt")

#: What is planned, lowest first. A module imports from the lines above its own, never from its own line;
#: a package (dsconfig, engine, report, cli) is one entry, and its own files may import each other.
LAYERS = (
    "errors heap_threshold pythonpath schemas signals",
    "units files families child_process hub_names",
    "records",
    "model hardware workload zero dry_run",
    "plan modelfile events",
    "catalogue",
    "infer detect dsconfig reductions embeddings efficient_attention",
    "kernels measurement allocator",
    "sizes",
    "ledger",
    "tape states buffers overhead",
    "operators",
    "attention",
    "decoders",
    "activations partition optimizers",
    "engine",
    "walk",
    "verdict",
    "ladder recommend strategies prediction timing",
    "estimate comparison",
    "runner_process verify_device check search",
    "verification live_module",
    "replay api",
    "report",
    "cli",
    "__main__",
)
LAYER = {name: number for number, line in enumerate(LAYERS) for name in line.split()}

#: What each package may import beside itself and the standard library.
OUTSIDE = {
    "dsplan": {"typer", "rich", "jsonschema", "referencing", "hjson", "yaml"},
    "runner": {"dsplan", "mingpt", "torch", "deepspeed", "psutil", "transformers"},
    "mingpt": {"torch"},
}

LONGEST_FILE = 400
LONGEST_MINGPT = 300


@dataclass(frozen=True)
class Import:
    """One import: where it is written, the module that has it, and the module that it names."""

    file: Path
    line: int
    importer: str
    imported: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.importer} imports {self.imported}"


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@lru_cache
def modules() -> frozenset[str]:
    return frozenset(module_of(file) for package in PACKAGES for file in sources(package))


def imported_by(node: ast.AST, importer: str, *, is_package: bool) -> Iterator[str]:
    """The modules that one statement imports: ``from dsplan import walk`` is dsplan.walk."""
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = importer.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
            base = ".".join([*parents, base] if base else parents)
        for name in node.names:
            yield f"{base}.{name.name}" if f"{base}.{name.name}" in modules() else base
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__"):
            yield str(node.args[0].value)


@lru_cache
def imports(package: str) -> tuple[Import, ...]:
    """Every import of a package, wherever it is written: in functions and under TYPE_CHECKING too."""
    found = []
    for file in sources(package):
        importer = module_of(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for imported in imported_by(node, importer, is_package=file.name == "__init__.py"):
                found.append(Import(file, getattr(node, "lineno", 0), importer, imported))
    return tuple(found)


def place(module: str) -> str:
    """The entry of LAYERS that a module of dsplan belongs to: dsplan.engine.stage3 is in engine."""
    return module.split(".")[1]


def runs_back(found: Import) -> str | None:
    """Why an import within dsplan is not allowed; None when it is."""
    if found.imported == "dsplan" or found.importer == "dsplan":
        return None if found.imported == "dsplan" else "the package itself imports nothing"  # __version__
    importer, imported = place(found.importer), place(found.imported)
    if importer == imported and (ROOT / "dsplan" / importer).is_dir():
        return None
    if LAYER[imported] < LAYER[importer]:
        return None
    return f"{imported} (layer {LAYER[imported]}) is not below {importer} (layer {LAYER[importer]})"


def test_every_module_has_one_place_in_the_table() -> None:
    entries = [name for line in LAYERS for name in line.split()]
    assert len(entries) == len(set(entries))
    assert {place(module) for module in modules() if module.startswith("dsplan.")} == set(entries)


def test_imports_within_dsplan_run_one_way() -> None:
    wrong = [
        f"{found}: {why}"
        for found in imports("dsplan")
        if found.imported.split(".")[0] == "dsplan" and (why := runs_back(found))
    ]
    assert not wrong, "\n".join(["imports that run back:", *wrong])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    allowed = {package, *OUTSIDE[package], *sys.stdlib_module_names}
    wrong = [str(found) for found in imports(package) if found.imported.split(".")[0] not in allowed]
    assert not wrong, "\n".join([f"{package} may import {', '.join(sorted(OUTSIDE[package]))}:", *wrong])


def test_no_module_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = {module: set() for module in modules()}
    for package in PACKAGES:
        for found in imports(package):
            # A package's __init__ is there before the modules that it holds; the others must come in order.
            if found.imported in graph and not f"{found.importer}.".startswith(f"{found.imported}."):
                graph[found.importer].add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("dsplan.walk", "dsplan.engine.base", True),
        ("dsplan.engine.stage3", "dsplan.engine.gathering", True),
        ("dsplan.engine.stage3", "dsplan.walk", False),
        ("dsplan.strategies", "dsplan.dsconfig.buckets", True),
        ("dsplan.dsconfig.buckets", "dsplan.strategies", False),
        ("dsplan.estimate", "dsplan.report.table", False),
        ("dsplan.report.table", "dsplan.cli", False),
        ("dsplan.model", "dsplan.workload", False),  # peers do not know each other
        ("dsplan.report.table", "dsplan", True),
    ],
)
def test_the_rule_knows_up_from_down(importer: str, imported: str, allowed: bool) -> None:
    assert (runs_back(Import(ROOT / "x.py", 1, importer, imported)) is None) == allowed


def test_imports_are_found_in_every_form() -> None:
    text = (
        "import dsplan.walk\nfrom dsplan import states, __version__\nfrom . import base\nfrom .stage0 import x\n"
        "from ..plan import Plan\ndef f():\n    importlib.import_module('torch')\n"
    )
    found = [
        name
        for node in ast.walk(ast.parse(text))
        for name in imported_by(node, "dsplan.engine.stage12", is_package=False)
    ]
    assert found == [
        "dsplan.walk",
        "dsplan.states",
        "dsplan",
        "dsplan.engine.base",
        "dsplan.engine.stage0",
        "dsplan.plan",
        "torch",
    ]
    (node,) = ast.parse("from .base import Run").body
    assert list(imported_by(node, "dsplan.engine", is_package=True)) == ["dsplan.engine.base"]


def test_the_command_line_loads_neither_torch_nor_deepspeed() -> None:
    heavy = ("torch", "deepspeed", "runner", "mingpt")
    code = f"import sys, dsplan.cli; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", PACKAGES)
def test_files_stay_small(package: str) -> None:
    lines = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in sources(package)
    }
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}
    if package == "mingpt":
        assert sum(lines.values()) < LONGEST_MINGPT
