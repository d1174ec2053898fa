"""Verdicts: each published row against the planner, and what is said of it.

``holds`` of a row is True when the verdict is what the planner has to give, False when it is not, and None where there
is nothing to judge; the reason then says why. No number here is fitted: a prediction is a walk, a tolerance is stated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dsplan.replay.bounds import lower_bound
from dsplan.replay.cases import Case, Subject, case, cases, subjects
from dsplan.replay.eras import Account, account, engine_of_its_day, era_of
from dsplan.replay.fitting import fit
from dsplan.replay.levels import steady_level
from dsplan.units import GIB, format_bytes

#: Of a predicted peak; of the difference between two runs; of a level between steps, in GiB.
PEAK_TOLERANCE = 0.12
DIFFERENCE_TOLERANCE = 0.02
LEVEL_TOLERANCE_GIB = 0.04

#: Sections in the order in which they are shown.
COUNTS, PEAKS, DIFFERENCE, LEVELS, FITS, REFUSED, SHOWN = (
    "counts",
    "peaks",
    "difference",
    "levels",
    "fits",
    "refused",
    "shown",
)
SECTIONS = (COUNTS, PEAKS, DIFFERENCE, LEVELS, FITS, REFUSED, SHOWN)
BYTES, PARAMETERS, RUNS = "bytes", "parameters", "runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summand:
    """One named part of a number: a changed rule, or what a bound is made of."""

    name: str
    note: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the command says of one published figure.

    Attributes:
        section: one of :data:`SECTIONS`.
        case: the row's name in the data, or the model's.
        standing: how far the published figure can be trusted.
        unit: what published and predicted count: bytes, parameters, or runs (1: it ran, 0: out of memory).
        published: the figure; None where none was given.
        predicted: the planner's; None where it has none.
        error: predicted against published, as a share; None where one is missing.
        verdict: in a word or two.
        holds: see above.
        reason: why.
        summands: what makes up the prediction by the rules of the run's day, or the bound.
    """

    section: str
    case: str
    standing: str
    unit: str
    published: int | None
    predicted: int | None
    verdict: str
    holds: bool | None
    reason: str = ""
    summands: tuple[Summand, ...] = ()

    @property
    def error(self) -> float | None:
        """Relative error of the prediction, signed; None where there is none to take."""
        if self.unit == RUNS or not self.published or self.predicted is None:
            return None
        return self.predicted / self.published - 1


def rows(on_progress: Callable[[], None] = lambda: None) -> Iterator[Row]:
    """Every row of every section; ``on_progress`` after each."""
    for subject in subjects():
        yield _count(subject)
    judged = {"peak": _peak, "level": _level, "fit": _fit, "refuse": _refuse, "duplicate": _duplicate, "shown": _shown}
    for one in cases():
        if one.judge in judged:
            yield judged[one.judge](one)
            on_progress()
    yield _difference()


def _count(subject: Subject) -> Row:
    found = None
    if subject.shape is not None:
        found = subject.shape.num_parameters
    elif subject.tensors is not None:
        found = sum(subject.tensors.parameters)
    exact = found == subject.num_parameters
    return Row(
        section=COUNTS,
        case=subject.name,
        standing="",
        unit=PARAMETERS,
        published=subject.num_parameters,
        predicted=found,
        verdict="not modelled" if found is None else "exact" if exact else "wrong",
        holds=None if found is None else exact,
        reason="an encoder-decoder: dsplan plans decoders" if found is None else "",
    )


def _peak(one: Case) -> Row:
    published = one.published.peak_bytes
    assert published is not None
    found = account(one)
    error, error_then = found.today_bytes / published - 1, found.then_bytes / published - 1
    if abs(error) <= PEAK_TOLERANCE:
        verdict, holds = f"within {PEAK_TOLERANCE:.0%}", True
    elif found.era and abs(error_then) <= PEAK_TOLERANCE:
        verdict, holds = "explained", True
    else:
        verdict, holds = "not explained", False
    reason = ""
    if found.era:
        reason = f"by the rules of {found.era} {format_bytes(found.then_bytes)} ({error_then:+.1%}), in {found.moment}"
    if one.published.host_bytes is not None:
        reason += _host(one, one.published.host_bytes)
    return Row(
        section=PEAKS,
        case=one.id,
        standing=one.standing,
        unit=BYTES,
        published=published,
        predicted=found.today_bytes,
        verdict=verdict,
        holds=holds,
        reason=reason,
        summands=_accounted(found, published) if found.era else (),
    )


def _host(one: Case, published: int) -> str:
    """Host memory of the whole machine, which nobody judges: the published figure counts what else ran on it."""
    assert one.model.shape is not None
    found = fit(one.model.shape, one.plan, one.cluster).host_bytes
    error = found / published - 1
    return f"; host memory published {format_bytes(published)}, the planner {format_bytes(found)} ({error:+.1%})"


def _accounted(found: Account, published: int) -> tuple[Summand, ...]:
    """From the planner's peak to the published one: the rules that have changed, and what they leave open."""
    changed = (Summand(name=c.name, note=c.was, size_bytes=c.size_bytes) for c in found.changes if c.size_bytes)
    return (
        Summand(name="today", note="the planner's peak over the steps", size_bytes=found.today_bytes),
        *changed,
        Summand(name="open", note="not accounted for", size_bytes=published - found.then_bytes),
    )


def _difference() -> Row:
    """What offloading the optimizer saves at 1.7B: master, moments and gradients, 14Ψ/N."""
    resident, offloaded = case("1.7B-zero3"), case("1.7B-zero3-offload")
    theory = 14 * resident.model.num_parameters // resident.world_size
    assert resident.published.peak_bytes is not None
    assert offloaded.published.peak_bytes is not None
    published = resident.published.peak_bytes - offloaded.published.peak_bytes
    whole, rest = account(resident), account(offloaded)
    predicted, then = whole.today_bytes - rest.today_bytes, whole.then_bytes - rest.then_bytes
    errors = (published / theory - 1, predicted / theory - 1)
    holds = all(abs(error) <= DIFFERENCE_TOLERANCE for error in errors)
    return Row(
        section=DIFFERENCE,
        case="1.7B-zero3 less 1.7B-zero3-offload",
        standing="usable",
        unit=BYTES,
        published=published,
        predicted=predicted,
        verdict=f"within {DIFFERENCE_TOLERANCE:.0%}" if holds else "off",
        holds=holds,
        reason=f"14Ψ/8 is {format_bytes(theory)}: published {errors[0]:+.1%}, the planner {errors[1]:+.1%}; by the "
        f"rules of {whole.era}, as we read them, {then / theory - 1:+.1%}: the gradients' 2Ψ/8 come after its peak",
    )


def _level(one: Case) -> Row:
    published, tensors = one.published.level_bytes, one.model.tensors
    assert published is not None
    assert tensors is not None
    assert one.zero is not None
    terms = steady_level(tensors, one.zero, one.world_size, one.precision)
    predicted = sum(size for _, size in terms)
    holds = abs(predicted - published) <= LEVEL_TOLERANCE_GIB * GIB
    near = f"{LEVEL_TOLERANCE_GIB} GiB"
    peak = one.published.peak_bytes
    return Row(
        section=LEVELS,
        case=one.id,
        standing=one.standing,
        unit=BYTES,
        published=published,
        predicted=predicted,
        verdict=f"within {near}" if holds else f"off by more than {near}",
        holds=holds,
        reason=""
        if peak is None
        else f"its peak of {format_bytes(peak)} is not judged: there are no activations of it here",
        summands=tuple(Summand(name=term.name, note=term.formula, size_bytes=size) for term, size in terms if size),
    )


def _fit(one: Case) -> Row:
    assert one.published.fits is not None
    ran, shape = one.published.fits, one.model.shape
    if shape is None:
        bound = sum(part.size_bytes for part in lower_bound(one))
        reason = f"an encoder-decoder is not modelled; its states need {format_bytes(bound)}, which rules out nothing"
        return _runs(one, None, "not judged", reason=reason)
    found = fit(shape, one.plan, one.cluster, engine_of_its_day(one))
    need = f"{found.verdict}: {format_bytes(found.device_bytes)} of {format_bytes(found.usable_bytes)} a card"
    if one.plan.ddp and era_of(one):
        need += f" by the rules of {era_of(one)}"
    if one.scaled_from:
        return _scaled(one, ran, found.usable_bytes, need)
    if one.setup.host_memory_bytes is not None:
        need += f", {format_bytes(found.host_bytes)} of {format_bytes(one.setup.host_memory_bytes)} on the host"
    return _runs(one, found.can_run, "right" if found.can_run == ran else "wrong", reason=need)


def _scaled(one: Case, ran: bool, usable: int, need: str) -> Row:
    """Gaudi in lazy mode keeps what CUDA frees: the published peak of the same script, scaled by parameters."""
    source = case(one.scaled_from)
    assert source.published.peak_bytes is not None
    scaled = source.published.peak_bytes * one.model.num_parameters // source.model.num_parameters
    runs = scaled <= usable
    reason = (
        f"{source.id}'s published peak times the parameters is {format_bytes(scaled)} of {format_bytes(usable)}; "
        f"the formulas alone, which know no lazy mode, say {need}"
    )
    return _runs(one, runs, "right" if runs == ran else "wrong", reason=reason)


def _runs(one: Case, predicted: bool | None, verdict: str, *, reason: str) -> Row:
    assert one.published.fits is not None
    return Row(
        section=FITS,
        case=one.id,
        standing=one.standing,
        unit=RUNS,
        published=int(one.published.fits),
        predicted=None if predicted is None else int(predicted),
        verdict=verdict,
        holds=None if predicted is None else verdict == "right",
        reason=reason,
    )


def _refuse(one: Case) -> Row:
    """A provably wrong row: below what any implementation needs, or figures that belong to another run."""
    published = one.published.peak_bytes
    assert published is not None
    parts = lower_bound(one)
    bound = sum(part.size_bytes for part in parts)
    below = published < bound
    copied = _copied_figures(one)
    if below:
        made_of = " + ".join(f"{part.formula} {part.name}" for part in parts)
        verdict = "refused"
        reason = f"below the {format_bytes(bound)} that no implementation can do without: {made_of}"
        if copied:
            reason += f"; {copied} figures are those of {one.of}"
    elif copied:
        verdict, reason = "refused", f"above the bound, but a copy: all {copied} figures are those of {one.of}"
    else:
        verdict, reason = "not refused", f"above the bound of {format_bytes(bound)}, and no copy"
    return Row(
        section=REFUSED,
        case=one.id,
        standing=one.standing,
        unit=BYTES,
        published=published,
        predicted=bound,
        verdict=verdict,
        holds=below or bool(copied),
        reason=f"{reason} ({one.remark})",
        summands=tuple(Summand(name=part.name, note=part.formula, size_bytes=part.size_bytes) for part in parts),
    )


def _copied_figures(one: Case) -> int:
    """How many published figures a row shares with the one it repeats, where it shares them all; else 0."""
    if not one.of:
        return 0
    other = case(one.of).published
    if one.published.table_mib:
        return sum(map(len, one.published.table_mib)) if one.published.table_mib == other.table_mib else 0
    mine = (one.published.peak_bytes, one.published.epoch_seconds)
    return len(mine) if mine == (other.peak_bytes, other.epoch_seconds) else 0


def _duplicate(one: Case) -> Row:
    same = _copied_figures(one) > 0 and one.plan.zero == case(one.of).plan.zero and one.model == case(one.of).model
    return _unjudged(one, f"the same run as {one.of}" if same else "differs from what it is said to repeat", holds=same)


def _shown(one: Case) -> Row:
    return _unjudged(one, f"{one.standing}: {one.remark}", holds=None)


def _unjudged(one: Case, reason: str, *, holds: bool | None) -> Row:
    found = account(one)
    published = one.published.peak_bytes
    if found.era and published:
        then = found.then_bytes / published - 1
        reason += f"; by the rules of {found.era} {format_bytes(found.then_bytes)} ({then:+.1%})"
    return Row(
        section=SHOWN,
        case=one.id,
        standing=one.standing,
        unit=BYTES,
        published=published,
        predicted=found.today_bytes,
        verdict="duplicate" if holds else "not judged" if holds is None else "wrong",
        holds=holds,
        reason=reason,
    )
