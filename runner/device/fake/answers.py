"""What the dry run answers where only data could tell, and how often it was asked.

One rule for all: training goes well. A number read from a tensor is 1 if it is of a floating type (a norm,
a loss, a scale: finite and not zero) and 0 if it is an integer or a truth value (no overflow, no NaN, nothing
found); two tensors that are compared are equal (every rank agrees).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from runner.device.fake.source import caller


class Answers:
    """Gives the answers and keeps count of them by the line that asked."""

    def __init__(self) -> None:
        self._given: Counter[tuple[str, str, str]] = Counter()

    def item(self, tensor: torch.Tensor) -> float | int | bool:
        """A tensor's one value."""
        answer = 1.0 if tensor.dtype.is_floating_point else False if tensor.dtype is torch.bool else 0
        self._note("item", answer)
        return answer

    def equal(self) -> bool:
        """Whether two tensors are equal."""
        self._note("equal", True)
        return True

    def no_overflow(self) -> None:
        """torch.amp.GradScaler found no infinity: it counts them in a floating type, which would answer 1."""
        self._note("found_inf", 0)

    def to_document(self) -> list[dict[str, Any]]:
        """The answers given, the most frequent first."""
        return [
            {"question": question, "where": where, "answer": answer, "count": count}
            for (question, where, answer), count in self._given.most_common()
        ]

    def _note(self, question: str, answer: object) -> None:
        _, where = caller(3)
        self._given[question, where, str(answer)] += 1
