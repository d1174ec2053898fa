"""The device's memory over a dry run as a picture: allocated and reserved, event by event, phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from dsplan.events.read import Event
from dsplan.units import format_bytes

WIDTH, HEIGHT = 1200, 420
LEFT, RIGHT, TOP, BOTTOM = 90, 20, 40, 50
#: The most columns that are drawn; each shows the highest of its events.
COLUMNS = 2000
_COLOURS = {"init": "#888888", "forward": "#2a7f62", "backward": "#b5651d", "step": "#3b5b92"}
_INIT = "init"

#: Where a size, or an event, stands in the picture.
_Axis = Callable[[float], float]


@dataclass(slots=True)
class _Run:
    """Levels after every event of the device; of every phase its first event, the one after its last, and its name."""

    allocated: list[int] = field(default_factory=list)
    reserved: list[int] = field(default_factory=list)
    phases: list[tuple[int, int, str, str]] = field(default_factory=list)
    died: bool = False


def timeline_svg(events: Iterable[Event], title: str) -> str:
    """An SVG document; without an event of the device an empty frame."""
    run = _read(events)
    top = max([*run.allocated, *run.reserved, 1])
    count = max(len(run.allocated), 1)

    def x(position: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * position / count

    def y(size: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * size / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
        *_scale(top, y),
        *_phases(run, x),
    ]
    if run.allocated:
        area = " ".join(f"{x(at):.1f},{y(size):.1f}" for at, size in _columns(run.allocated))
        parts.append(
            f'<polygon points="{LEFT},{y(0):.1f} {area} {x(count):.1f},{y(0):.1f}" fill="#4c8bd0" fill-opacity="0.55"/>'
        )
        line = " ".join(f"{x(at):.1f},{y(size):.1f}" for at, size in _columns(run.reserved))
        parts.append(f'<polyline points="{line}" fill="none" stroke="#c0392b" stroke-width="1.2"/>')
        parts += _peak(run, x, y)
    if run.died:
        parts.append(f'<text x="{WIDTH - RIGHT}" y="20" text-anchor="end" fill="#c0392b">out of memory</text>')
    parts.append(
        f'<text x="{LEFT}" y="{HEIGHT - 8}">{len(run.allocated):,} events; '
        'filled: allocated; <tspan fill="#c0392b">line: reserved</tspan></text>'
    )
    return "\n".join([*parts, "</svg>\n"])


def _read(events: Iterable[Event]) -> _Run:
    run = _Run()
    start = 0
    for event in events:
        if event["action"] == "phase_begin":
            start = len(run.allocated)
        elif event["action"] == "phase_end":
            run.phases.append((start, len(run.allocated), event["step"], event["phase"]))
        elif event["action"] == "oom":
            run.died = True
        elif event["place"] == "device":
            run.allocated.append(event["allocated_bytes"])
            run.reserved.append(event["reserved_bytes"])
    return run


def _columns(levels: list[int]) -> list[tuple[int, int]]:
    """(event, level), thinned out to the highest of each column."""
    width = -(-len(levels) // COLUMNS)
    return [
        (start + part.index(max(part)), max(part))
        for start in range(0, len(levels), width)
        if (part := levels[start : start + width])
    ]


def _scale(top: int, y: _Axis) -> list[str]:
    lines = []
    for quarter in range(5):
        size = top * quarter / 4
        height = f"{y(size):.1f}"
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}" stroke="#dddddd"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{height}" text-anchor="end" dy="4">{format_bytes(size)}</text>')
    return lines


def _phases(run: _Run, x: _Axis) -> list[str]:
    """A band under the curve for every phase, named once where there is room."""
    parts = []
    for start, end, step, phase in run.phases:
        left, right = x(start), x(end)
        colour = _COLOURS.get(phase, "#888888")
        label = phase if step == _INIT else f"{phase} {int(step) + 1}"
        parts.append(
            f'<rect x="{left:.1f}" width="{max(right - left, 0.5):.1f}" y="{HEIGHT - BOTTOM + 2}" height="12" '
            f'fill="{colour}"><title>{escape(label)}</title></rect>'
        )
        if right - left > 8 * len(label):
            parts.append(
                f'<text x="{(left + right) / 2:.1f}" y="{HEIGHT - BOTTOM + 28}" text-anchor="middle" '
                f'fill="{colour}">{escape(label)}</text>'
            )
    return parts


def _peak(run: _Run, x: _Axis, y: _Axis) -> list[str]:
    peak = max(run.allocated)
    at = run.allocated.index(peak)
    anchor = "end" if at > len(run.allocated) / 2 else "start"
    return [
        f'<circle cx="{x(at):.1f}" cy="{y(peak):.1f}" r="3" fill="#1b3a5c"/>',
        f'<text x="{x(at):.1f}" y="{y(peak) - 7:.1f}" text-anchor="{anchor}">peak {format_bytes(peak)} '
        f"(event {at:,})</text>",
    ]
