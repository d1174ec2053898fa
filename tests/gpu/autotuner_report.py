"""The table of ``tests/data/autotuner.json``: ``python -m tests.gpu.autotuner_report`` puts it into docs/search.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.regret import DOCUMENT, written

RECORD = Path(__file__).parents[1] / "data" / "autotuner.json"


def lines(document: dict[str, Any]) -> list[str]:
    """A Markdown table: what each recommends, what it reaches, what it cost."""
    planned, tuned = document["dsplan"], document["autotuner"]
    best = tuned["best"]
    config = {} if best is None else best["ds_config"]
    stage = config.get("zero_optimization", {}).get("stage", 0)
    chosen = "nothing yet"
    if best is not None:
        chosen = f"zero{stage}, micro batch {config['train_micro_batch_size_per_gpu']}"
        if config.get("gradient_accumulation_steps", 1) > 1:
            chosen += f", {config['gradient_accumulation_steps']} accumulated"
    ended = "finished" if tuned["finished"] else "ended by the limit"
    return [
        "| | recommends | tokens/s | GPU-minutes | took |",
        "|---|---|---|---|---|",
        f"| dsplan | {planned['strategy']}, micro batch {planned['micro_batch_size']} | {_speed(planned)} | 0 "
        f"| {planned['seconds']:.1f} s |",
        f"| autotuner | {chosen} | {_speed(tuned)} | {tuned['gpu_minutes']:.1f} "
        f"| {tuned['seconds']:.0f} s, {tuned['num_experiments']} experiments, {ended} |",
        "",
        f"Predicted of dsplan's: {planned['predicted_tokens_per_s']:,.0f} tokens/s.",
    ]


def _speed(of: dict[str, Any]) -> str:
    reached = of.get("measured_tokens_per_s")
    return f"failed: {of.get('failure', 'not run')}" if reached is None else f"{reached:,.0f}"


def main() -> None:
    document = json.loads(RECORD.read_text(encoding="utf-8"))
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(written(text, "autotuner", lines(document)), encoding="utf-8")


if __name__ == "__main__":
    main()
