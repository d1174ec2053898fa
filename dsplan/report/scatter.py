"""A scatter plot as SVG: points on two linear axes, made by hand so that planning needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 760, 460, 80, 60, 44, 150
_COLOURS = (
    "#4269d0",
    "#efb118",
    "#ff725c",
    "#6cc5b0",
    "#3ca951",
    "#ff8ab7",
    "#a463f2",
    "#97bbf5",
    "#9c6b4e",
    "#9498a0",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point, the group whose colour it has, and what a pointer over it shows."""

    x: float
    y: float
    group: str
    title: str


def scatter(dots: Sequence[Dot], *, title: str, x_label: str, y_label: str, joined: Sequence[Dot] = ()) -> str:
    """The picture; ``joined`` are connected by a line in their order. Axes begin at 0."""
    x_step, y_step = (_step(max([*(value for value in values), 1e-9])) for values in _axes([*dots, *joined]))
    x_most = max(x_step * math.ceil(max((dot.x for dot in dots), default=1.0) / x_step), x_step)
    y_most = max(y_step * math.ceil(max((dot.y for dot in dots), default=1.0) / y_step), y_step)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + x / x_most * (_WIDTH - _LEFT - _RIGHT)
        return across, _HEIGHT - _BOTTOM - y / y_most * (_HEIGHT - _BOTTOM - _TOP)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for number in range(round(x_most / x_step) + 1):
        x, y = place(number * x_step, 0)
        lines.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{number * x_step:g}</text>')
    for number in range(round(y_most / y_step) + 1):
        x, y = place(0, number * y_step)
        lines.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{number * y_step:,g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    lines.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 14}" text-anchor="middle">{escape(x_label)}</text>')
    lines.append(
        f'<text transform="translate(18 {_HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    if joined:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(dot.x, dot.y) for dot in joined))
        lines.append(f'<polyline points="{path}" fill="none" stroke="#555" stroke-dasharray="4 3"/>')
    groups = list(dict.fromkeys(dot.group for dot in dots))
    for dot in dots:
        x, y = place(dot.x, dot.y)
        colour = _COLOURS[groups.index(dot.group) % len(_COLOURS)]
        lines.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{escape(dot.title)}</title></circle>'
        )
    for number, group in enumerate(groups):
        y = _TOP + 16 * number
        lines.append(f'<circle cx="{_WIDTH - _RIGHT + 14}" cy="{y}" r="4" fill="{_COLOURS[number % len(_COLOURS)]}"/>')
        lines.append(f'<text x="{_WIDTH - _RIGHT + 24}" y="{y + 4}">{escape(group)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _axes(dots: Sequence[Dot]) -> tuple[list[float], list[float]]:
    return [dot.x for dot in dots], [dot.y for dot in dots]


def _step(most: float) -> float:
    """A round step of which four to ten reach ``most``."""
    power = 10.0 ** math.floor(math.log10(most))
    share = most / power
    return power * (0.2 if share <= 1.5 else 0.5 if share <= 4 else 1.0)
