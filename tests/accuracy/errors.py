"""Errors of many records: predicted minus measured, in percent of the measured number."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from tests.dry_comparison import NOISE_PERCENT, Value


@dataclass(frozen=True, slots=True)
class Errors:
    """The signed errors of some values, of which there is at least one."""

    values: tuple[Value, ...]

    @classmethod
    def of(cls, values: Iterable[Value]) -> Errors | None:
        """None of nothing."""
        found = tuple(values)
        return cls(found) if found else None

    @property
    def percents(self) -> list[float]:
        return [value.percent for value in self.values]

    @property
    def mean_percent(self) -> float:
        """Signed."""
        return statistics.fmean(self.percents)

    @property
    def median_percent(self) -> float:
        """Signed."""
        return statistics.median(self.percents)

    @property
    def median_absolute_percent(self) -> float:
        return statistics.median(map(abs, self.percents))

    @property
    def worst(self) -> Value:
        """The furthest off, either way."""
        return max(self.values, key=lambda value: abs(value.percent))

    @property
    def lowest(self) -> Value:
        """The one that promises too little by most."""
        return min(self.values, key=lambda value: value.percent)

    @property
    def share_under(self) -> float:
        """Share of the values that promise too little, by more than :data:`NOISE_PERCENT`."""
        return sum(percent < -NOISE_PERCENT for percent in self.percents) / len(self.values)

    def to_document(self) -> dict[str, float | int | str]:
        return {
            "number": len(self.values),
            "mean_percent": self.mean_percent,
            "median_percent": self.median_percent,
            "median_absolute_percent": self.median_absolute_percent,
            "worst_percent": self.worst.percent,
            "worst_record": self.worst.record,
            "lowest_percent": self.lowest.percent,
            "share_under": self.share_under,
        }
