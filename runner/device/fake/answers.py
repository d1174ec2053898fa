"""What the dry run answers where only data could tell, and how often it was asked.

One rule for all: training goes well. A number read from a tensor is 1 if it is of a floating type (a norm,
a loss, a scale: finite and not zero) and 0 if it is an integer or a truth value (no overflow, no NaN, nothing
found); two tensors that are compared are equal (every rank agrees). One exception: a dry run can be told to skip its
first steps, as fp16 does until the loss scale has settled; DeepSpeed, or torch's scaler, is then answered that the
gradients overflowed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from runner.device.fake.source import caller

#: Who asks whether fp16 gradients overflowed (deepspeed/runtime/utils.py, zero/stage_1_and_2.py, zero/stage3.py).
OVERFLOW_CHECK = "has_overflow"


class Answers:
    """Gives the answers and keeps count of them by the line that asked; ``skipped_steps``: so many overflow first."""

    def __init__(self, skipped_steps: int = 0) -> None:
        self._to_skip = skipped_steps
        self._given: Counter[tuple[str, str, str]] = Counter()

    def item(self, tensor: torch.Tensor) -> float | int | bool:
        """A tensor's one value."""
        function, where = caller(2)
        overflows = self._to_skip > 0 and function.endswith(OVERFLOW_CHECK)
        if tensor.dtype.is_floating_point:
            answer: float | int | bool = 1.0
        else:
            answer = overflows if tensor.dtype is torch.bool else int(overflows)
        self._given["item", where, str(answer)] += 1
        return answer

    def step_ended(self) -> None:
        """A step is over, skipped or not."""
        self._to_skip = max(0, self._to_skip - 1)

    def equal(self) -> bool:
        """Whether two tensors are equal."""
        self._note("equal", True)
        return True

    def found_inf(self) -> bool:
        """Whether torch.amp.GradScaler found an infinity: it counts them in a floating type, which would answer 1."""
        overflows = self._to_skip > 0
        self._note("found_inf", int(overflows))
        return overflows

    def to_document(self) -> list[dict[str, Any]]:
        """The answers given, the most frequent first."""
        return [
            {"question": question, "where": where, "answer": answer, "count": count}
            for (question, where, answer), count in self._given.most_common()
        ]

    def _note(self, question: str, answer: object) -> None:
        _, where = caller(3)
        self._given[question, where, str(answer)] += 1
