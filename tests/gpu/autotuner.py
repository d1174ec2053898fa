"""DeepSpeed's own autotuner beside dsplan: ``python -m tests.gpu.autotuner OUTPUT.json [--seconds S]``.

One setting, gpt2-medium in fp16 on one GPU. The autotuner runs in fast mode for at most S seconds; what it has found
best, and what dsplan recommends without a run, are then timed alike. OUTPUT.json is written as it goes.
``--tiny --device cpu`` tries the machinery.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from dsplan.catalogue import accelerator, preset
from dsplan.dsconfig.emit import emit
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.search.search import search
from dsplan.strategies import standard_plans
from dsplan.timing.profiles import DATA_SHEETS
from dsplan.timing.trials import run_trials
from dsplan.workload import Workload
from runner.environment import child_environment
from runner.launch import free_port
from runner.spec import SPEC_VERSION, RunSpec

ROOT = Path(__file__).parents[2]
#: Beyond it the autotuner would only look for the memory's end; tokens a second have long been flat.
MOST_SAMPLES = 64
TRIAL_S = 100.0


class Comparison:
    """What is compared, and the document that is written as it goes."""

    def __init__(self, output: Path, *, device: str, tiny: bool, folder: Path) -> None:
        self.output, self.device, self.tiny, self.folder = output, device, tiny, folder
        self.model: ModelShape = preset("gpt2-medium")
        self.sequence = 1024
        if tiny:
            self.sequence = 32
            self.model = replace(
                preset("gpt2"), num_layers=2, hidden_size=64, num_attention_heads=2, vocab_size=64,
                max_position_embeddings=32,
            )  # fmt: skip
        self.precision = "fp32" if tiny else "fp16"
        self.document: dict[str, Any] = {
            "model": self.model.to_config(),
            "sequence_length": self.sequence,
            "precision": self.precision,
            "device": device,
        }

    def save(self, **more: Any) -> None:
        self.document.update(more)
        self.output.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")

    def recommend(self) -> dict[str, Any]:
        """What dsplan recommends on the whole card, and how long it takes to say so."""
        begun = time.monotonic()
        workload = Workload(sequence_length=self.sequence, precision=self.precision)
        plans = [plan for plan in standard_plans(self.model, workload) if not plan.zero.offloads_optimizer]
        cluster = Cluster(accelerator=accelerator("h200"))
        sizes = (1, 2, 4) if self.tiny else ()
        result = search(
            self.model, plans, cluster, profile=DATA_SHEETS if self.tiny else None, sizes=sizes, what_if=False,
            closely=not self.tiny,
        )  # fmt: skip
        winner = result.winner
        assert winner is not None
        found = {
            "strategy": winner.plan.name,
            "micro_batch_size": winner.plan.workload.micro_batch_size,
            "checkpointing": winner.plan.workload.activation_checkpointing,
            "predicted_tokens_per_s": winner.tokens_per_s,
            "profile": result.profile,
            "seconds": time.monotonic() - begun,
            "gpu_minutes": 0.0,
            "ds_config": emit(winner.plan, self.model, winner.cluster),
        }
        self.save(dsplan=found)
        return found

    def tune(self, seconds: float) -> dict[str, Any]:
        """DeepSpeed's autotuner, in fast mode, for at most ``seconds``."""
        command, env = self._command()
        begun = time.monotonic()
        with (self.folder / "autotuner.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            seen = 0
            while process.poll() is None and time.monotonic() - begun < seconds:
                time.sleep(0.5)
                tried = self.experiments()
                if len(tried) > seen:
                    seen = len(tried)
                    self.save(autotuner=self._found(tried, begun, finished=False))
                    sys.stdout.write(f"autotuner, {time.monotonic() - begun:.0f} s: {tried[-1]['name']}\n")
                    sys.stdout.flush()
            finished = process.poll() is not None
            _end(process)
        found = self._found(self.experiments(), begun, finished=finished)
        found["exit_code"] = process.returncode
        log_text = (self.folder / "autotuner.log").read_text(errors="replace")
        found["said"] = [line for line in log_text.splitlines() if "autotuner.py" in line or "Error" in line][-40:]
        self.save(autotuner=found)
        return found

    def _found(self, tried: list[dict[str, Any]], begun: float, *, finished: bool) -> dict[str, Any]:
        ran = [row for row in tried if row["samples_per_s"]]
        best = max(ran, key=lambda row: float(row["samples_per_s"]), default=None)
        wall = time.monotonic() - begun
        return {
            "finished": finished,
            "seconds": wall,
            "gpu_minutes": wall / 60,
            "num_experiments": len(tried),
            "best": best,
            "experiments": tried,
        }

    def experiments(self) -> list[dict[str, Any]]:
        """Every experiment that has ended or begun, by name: its configuration, and samples a second."""
        found = []
        for path in sorted(
            (self.folder / "autotuning_results").glob("*/ds_config.json"), key=lambda p: p.stat().st_mtime
        ):
            if path.parent.name.startswith("profile"):
                continue
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
                metrics = path.parent / "metrics.json"
                speed = json.loads(metrics.read_text().splitlines()[-1])["throughput"] if metrics.exists() else None
            except (ValueError, IndexError, KeyError):  # still being written
                continue
            found.append({"name": path.parent.name, "samples_per_s": speed, "ds_config": config})
        return found

    def _command(self) -> tuple[list[str], dict[str, str]]:
        shape, config = self.folder / "shape.json", self.folder / "ds_config.json"
        shape.write_text(json.dumps(self.model.to_config()), encoding="utf-8")
        config.write_text(json.dumps(self._config()), encoding="utf-8")
        spec = RunSpec(model={}, ds_config={}, sequence_length=1, device=self.device, gpus=1)
        env = child_environment(spec, os.environ)
        env["DSPLAN_PARENT_PID"] = str(os.getpid())
        if self.device == "cpu":
            env["OMP_NUM_THREADS"] = "1"
        # What the autotuner calls by name: its launcher, and pdsh with which it ends processes by their name on other
        # machines. There are none.
        tools = self.folder / "bin"
        tools.mkdir()
        for name, line in (
            ("deepspeed", f'exec "{sys.executable}" -m deepspeed.launcher.runner "$@"'),
            ("pdsh", "exit 0"),
        ):
            (tools / name).write_text(f"#!/bin/sh\n{line}\n")
            (tools / name).chmod(0o755)
        env["PATH"] = os.pathsep.join([str(tools), env["PATH"]])
        paths = [str(ROOT), env.get("PYTHONPATH", "")]
        if importlib.util.find_spec("tabulate") is None:  # only prints its table with it
            (tools / "tabulate.py").write_text("def tabulate(rows, **_):\n    return repr(rows)\n")
            paths.insert(0, str(tools))
        env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        script = [str(ROOT / "tests" / "gpu" / "autotuner_script.py"), "--shape", str(shape)]
        script += ["--sequence", str(self.sequence), "--device", self.device, "--deepspeed_config", str(config)]
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--autotuning", "tune", "--num_gpus", "1"]
        launcher += ["--num_nodes", "1", "--hostfile", os.devnull, "--master_port", str(free_port())]
        return [*launcher, *script], env

    def _config(self) -> dict[str, Any]:
        """What a user would give: every stage to try, micro batches left to the autotuner."""
        tuning: dict[str, Any] = {"enabled": True, "fast": True, "max_train_micro_batch_size_per_gpu": MOST_SAMPLES}
        if self.tiny:
            tuning |= {"max_train_micro_batch_size_per_gpu": 4, "num_tuning_micro_batch_sizes": 2}
        return {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": 1,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
            "gradient_clipping": 1.0,
            **({"fp16": {"enabled": True, "initial_scale_power": 12}} if self.precision == "fp16" else {}),
            "zero_optimization": {"stage": [0] if self.tiny else "all"},
            "autotuning": tuning,
        }

    def time_both(self, planned: dict[str, Any], tuned: dict[str, Any]) -> None:
        """Steps of both recommendations, timed alike."""
        pairs = [("dsplan", planned["ds_config"], planned["checkpointing"])]
        if tuned["best"] is not None:
            kept = {key: value for key, value in tuned["best"]["ds_config"].items() if key != "autotuning"}
            pairs.append(("autotuner", kept, "none"))
        specs = [
            {
                "version": SPEC_VERSION, "model": self.model.to_config(), "ds_config": config,
                "sequence_length": self.sequence, "activation_checkpointing": checkpointing, "device": self.device,
                "gpus": 1, "steps": 5,
            }
            for _, config, checkpointing in pairs
        ]  # fmt: skip
        outcomes = run_trials(specs, self.folder, timeout_s=TRIAL_S, on_progress=lambda _: None)
        for (name, config, _), outcome in zip(pairs, outcomes, strict=True):
            tokens = config["train_micro_batch_size_per_gpu"] * config.get("gradient_accumulation_steps", 1)
            reached = None if outcome.seconds is None else tokens * self.sequence / outcome.seconds
            self.document[name] |= {
                "measured_tokens_per_s": reached,
                "peak_reserved_bytes": outcome.peak_reserved_bytes,
                "failure": outcome.message,
                "versions": dict(outcome.versions or {}),
            }
            sys.stdout.write(f"{name}: {reached} tokens/s {outcome.message}\n")
        self.save()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and every one that it started."""
    try:
        family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        family = []
    for pid in family:
        try:
            psutil.Process(pid).kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="autotuner-"))
    compared = Comparison(arguments.output.absolute(), device=arguments.device, tiny=arguments.tiny, folder=folder)
    planned = compared.recommend()
    sys.stdout.write(f"dsplan: {planned['strategy']} x {planned['micro_batch_size']} in {planned['seconds']:.1f} s\n")
    sys.stdout.flush()
    tuned = compared.tune(arguments.seconds)
    best = "nothing" if tuned["best"] is None else tuned["best"]["name"]
    sys.stdout.write(f"autotuner: {best} in {tuned['seconds']:.0f} s, {tuned['num_experiments']} experiments\n")
    sys.stdout.flush()
    compared.time_both(planned, tuned)


if __name__ == "__main__":
    main()
