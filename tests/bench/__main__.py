"""Time dsplan beside DeepSpeed's estimator and the dry run: ``python -m tests.bench [--dry-run] [--json]``.

Keeps the figures in tests/data/speed.json, from which ``python -m tests.accuracy`` writes them into docs/accuracy.md.
Without ``--dry-run``, which takes minutes, those of the dry run stay as they are.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from dsplan.catalogue import accelerator, preset
from dsplan.errors import EXIT_OK, EXIT_RUN_FAILED, RunError
from dsplan.hardware import Cluster
from dsplan.kernels import Kernels
from dsplan.model import ModelShape
from dsplan.search.search import search
from dsplan.search.sweep import sweep
from dsplan.strategies import standard_plans
from dsplan.walk import walk
from dsplan.workload import Workload
from tests.baselines import largest_layer_parameters
from tests.bench.speeds import SPEEDS, Speed, read_speeds, readable, write_speeds
from tests.bench.subjects import DEEP, STAGES, forget, plan_of

REPEATS, COMMAND_REPEATS, SWEEP_REPEATS = 20, 3, 5
SWEEP_PLANS_A_SECOND = 5000
CANDIDATES, SEARCH_SECONDS = 5000, 2.0
RANKS = (8, 1024)
#: What was asked of a plan, by stage.
TARGETS = {0: 1e-3, 1: 1e-3, 2: 1e-3, 3: 5e-3}
_DEEPSPEED = """
import time
from deepspeed.runtime.zero.{module} import {function} as ask
times = []
for _ in range({repeats}):
    started = time.process_time_ns()
    for _ in range(1000):
        ask({arguments})
    times.append((time.process_time_ns() - started) / 1e12)
print(min(times))
"""


def _plan(what: str, stage: int, ranks: int, *, cached: bool) -> Speed:
    """One walk."""
    plan, times, model = plan_of(stage), [], DEEP
    for _ in range(REPEATS):
        if not cached:
            forget()
            model = replace(DEEP)  # which has not worked out its parameters yet
        started = time.process_time()
        walk(model, plan, ranks, Kernels())
        times.append(time.process_time() - started)
    return Speed(what=what, seconds=min(times), repeats=REPEATS, target_seconds=TARGETS[stage])


def _sweep(what: str) -> Speed:
    """A plan of a sweep with its step time: nothing is cached when the sweep begins."""
    model, plans = preset("gpt2"), [plan for plan in standard_plans(preset("gpt2"), Workload()) if plan.zero.stage < 3]
    cards, times = [accelerator("a100-40gb"), accelerator("h100")], []
    grid = {"gpus": [1, 2, 4, 8], "micro_batch_sizes": [1, 2, 4, 8, 16, 32], "sequence_lengths": [128, 256, 512, 1024]}
    gc.freeze()  # as the command does
    for _ in range(SWEEP_REPEATS):
        forget()
        started = time.process_time()
        points = list(sweep(model, plans, Cluster(accelerator=cards[0], gpus_per_node=8), accelerators=cards, **grid))
        times.append((time.process_time() - started) / len(points))
    gc.unfreeze()
    return Speed(what=what, seconds=min(times), repeats=SWEEP_REPEATS, target_seconds=1 / SWEEP_PLANS_A_SECOND)


def _search(what: str) -> Speed:
    """What ``dsplan recommend`` does for a model of 67 billion parameters, in proportion to so many candidates."""
    model = ModelShape(name="80 layers", num_layers=80, hidden_size=8192, num_attention_heads=64, attention="sdpa")
    cluster = Cluster(accelerator=accelerator("h100"), gpus_per_node=8, num_nodes=8)
    times = []
    for _ in range(SWEEP_REPEATS):
        forget()
        started = time.process_time()
        found = search(replace(model), standard_plans(model, Workload()), cluster)
        times.append((time.process_time() - started) * CANDIDATES / found.num_candidates)
    return Speed(what=what, seconds=min(times), repeats=SWEEP_REPEATS, target_seconds=SEARCH_SECONDS)


def _arithmetic(what: str, stage: int) -> Speed:
    """DeepSpeed's own function, once it is imported."""
    total, largest = DEEP.num_parameters, largest_layer_parameters(DEEP)
    module, function, arguments = (
        ("stage3", "estimate_zero3_model_states_mem_needs", f"{total}, {largest}, 8, 8, False, False")
        if stage == 3
        else ("stage_1_and_2", "estimate_zero2_model_states_mem_needs", f"{total}, 8, 8, False")
    )
    script = _DEEPSPEED.format(module=module, function=function, arguments=arguments, repeats=REPEATS)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    return Speed(what=what, seconds=float(done.stdout.splitlines()[-1]), repeats=REPEATS)


def _command(what: str, *arguments: str, repeats: int = COMMAND_REPEATS) -> Speed:
    """A whole process and its children."""
    times = []
    for _ in range(repeats):
        before = _of_children()
        done = subprocess.run([sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"{what}: exit code {done.returncode}: {(done.stderr.splitlines() or [''])[-1]}")
        times.append(_of_children() - before)
    return Speed(what=what, seconds=min(times), repeats=repeats)


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _dry_run(what: str, stage: int) -> Speed:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "config.json"
        model.write_text(json.dumps(DEEP.to_config()), encoding="utf-8")
        asked = ("--model", str(model), "--gpus", "64", "--gpu", "h200", "--strategy", f"zero{stage}")
        record = str(Path(folder) / "record.json")
        # Whether the formulas hold is not asked here: any tolerance will do.
        return _command(
            what, "-m", "dsplan", "verify", "--device", "fake", *asked, "--tolerance", "99", "-o", record, repeats=1
        )


_IMPORT = "from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs"
_ESTIMATE = ("-m", "dsplan", "estimate", "--model", "gpt2-xl", "--gpus", "8", "--json")

SUBJECTS: Mapping[str, Callable[[], Speed]] = {
    what: partial(make, what)
    for what, make in {
        **{
            f"`dsplan`, a plan, stage {stage}, {ranks:,} ranks": partial(_plan, stage=stage, ranks=ranks, cached=False)
            for stage in STAGES
            for ranks in RANKS
        },
        **{
            f"`dsplan`, a plan again, stage {stage}, 64 ranks": partial(_plan, stage=stage, ranks=64, cached=True)
            for stage in STAGES
        },
        "`dsplan sweep`, a plan of stages 0 to 2 with its step time": _sweep,
        f"`dsplan recommend`'s search, 80 layers, 64 GPUs, {CANDIDATES:,} candidates": _search,
        **{f"DeepSpeed's estimator, stage {stage}, imported": partial(_arithmetic, stage=stage) for stage in (2, 3)},
        "`dsplan estimate`, the whole command, 16 plans": lambda what: _command(what, *_ESTIMATE),
        "DeepSpeed's estimator, its import": lambda what: _command(what, "-c", _IMPORT),
    }.items()
}
DRY_RUNS: Mapping[str, Callable[[], Speed]] = {
    what: partial(_dry_run, what, stage)
    for what, stage in ((f"dry run, stage {stage}, 64 ranks, 4 steps", stage) for stage in STAGES)
}


def _least(earlier: Speed | None, now: Speed) -> Speed:
    """The faster of two, of the repeats of both."""
    if earlier is None:
        return now
    return replace(now, seconds=min(earlier.seconds, now.seconds), repeats=earlier.repeats + now.repeats)


def main(arguments: Sequence[str] | None = None, path: Path = SPEEDS) -> int:
    """Time everything, keep it in ``path``, and print it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="time the dry runs too, which takes minutes")
    parser.add_argument("--json", action="store_true", help="print what is kept")
    parser.add_argument("--rounds", type=int, default=1, help="time all so many times, on a machine that is uneven")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    kept = {each.what: each for each in read_speeds(path)["speeds"]}
    wanted = {**SUBJECTS, **(DRY_RUNS if options.dry_run else {})}
    failed = False
    timed_now: dict[str, Speed] = {}
    for number, (what, timed) in enumerate([*wanted.items()] * options.rounds, start=1):
        try:
            timed_now[what] = _least(timed_now.get(what), timed())
            said = readable(timed_now[what].seconds)
        except RunError as error:
            failed, said = True, f"failed: {error}"
        sys.stderr.write(f"[{number:2d}/{len(wanted) * options.rounds}] {what}: {said}\n")
    kept |= timed_now
    speeds = {what: kept[what] for what in (*SUBJECTS, *DRY_RUNS) if what in kept}
    write_speeds(speeds, path)
    if options.json:
        json.dump({"speeds": [asdict(each) for each in speeds.values()]}, sys.stdout, indent=1)
        sys.stdout.write("\n")
    return EXIT_RUN_FAILED if failed else EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
