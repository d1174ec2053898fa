"""Search: the best plan among all that fit.

Memory decides what may be chosen, time what is chosen. For each strategy the largest micro batch that fits is found
by bisection over walks (:mod:`dsplan.search.memory`), and every smaller one fits too; the time of a candidate costs
microseconds, so all are timed. Variations of buckets are timed first, and only the few that would be faster than what
is known to fit are walked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dsplan.errors import InputError, choice
from dsplan.hardware import Cluster
from dsplan.model import ModelShape
from dsplan.plan import Plan
from dsplan.search.closely import lives, reconsidered
from dsplan.search.memory import Weight, largest_terms, reach, weigh
from dsplan.search.pareto import front, spread
from dsplan.search.result import OBJECTIVES, Candidate, Rejected, SearchResult, WhatIf
from dsplan.search.settled import settled
from dsplan.search.space import (
    accumulations,
    check_global_batch,
    fewer_devices,
    micro_batches,
    variations,
    with_batch,
)
from dsplan.timing.profile import NoDriveError, Profile
from dsplan.timing.rates import Machine, machine
from dsplan.timing.step_time import StepTimer
from dsplan.units import format_bytes

#: Faster variations of a strategy that are walked, at most; and what "faster" is worth a walk.
_WALKED, _WORTH = 3, 1.002
#: How much faster than the best by the bound a candidate has to be for the replay to be asked, which takes a second.
_WORTH_A_REPLAY = 1.05
_TERMS = 3
#: The second micro batch that is walked, by its place among the sizes.
_SECOND = 5
#: Points of the front that are walked and shown.
_FRONT = 12


def search(
    model: ModelShape,
    plans: Sequence[Plan],
    cluster: Cluster,
    *,
    profile: Profile | None = None,
    objective: str = "speed",
    global_batch_size: int | None = None,
    sizes: tuple[int, ...] = (),
    headroom_bytes: int = 0,
    vary: bool = True,
    what_if: bool = True,
    closely: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> SearchResult:
    """The best of ``plans``, their micro batches and variations.

    Args:
        model: what is trained.
        plans: the strategies (:func:`dsplan.strategies.standard_plans`), batch sizes apart.
        cluster: the machines; they must name a device.
        profile: measured rates; None takes those that ship for the device, else its data sheet's.
        objective: ``speed`` (tokens a second; of what is as good as the fastest the lowest stage), ``headroom`` (free
            device memory) or ``cost`` (device-seconds a token, also on fewer devices).
        global_batch_size: samples of one step of all ranks; accumulation makes it up. None: any, and accumulation
            stays what the plans say.
        sizes: the only micro batches to try; empty: all that are worth it.
        headroom_bytes: device memory that has to stay free beyond what ``fits`` allows for.
        vary: also vary buckets and thresholds.
        what_if: also ask what one more device or more host memory would allow.
        closely: have the replay of the allocator judge (``dsplan estimate``'s verdict) all that would be faster and
            only the bound on fragmentation refuses, and the winner; takes seconds for a deep model. Without it only
            what would be :data:`_WORTH_A_REPLAY` times as fast.
        on_progress: called with (strategies done, strategies in all).

    Raises:
        InputError: no device, an unknown objective, a global batch that the ranks cannot share, or no rates.
    """
    objective = choice("objective", objective, OBJECTIVES)
    accelerator = cluster.accelerator
    if accelerator is None or accelerator.memory_bytes is None:
        raise InputError("accelerator: a search needs a device with memory of its own; name one with --gpu")
    if headroom_bytes >= accelerator.memory_bytes:
        raise InputError(
            f"headroom: {format_bytes(headroom_bytes)} is not allowed; it must be less than the "
            f"{format_bytes(accelerator.memory_bytes)} of {accelerator.name}"
        )
    if headroom_bytes:
        smaller = replace(accelerator, memory_bytes=accelerator.memory_bytes - headroom_bytes)
        cluster = replace(cluster, accelerator=smaller)
    check_global_batch(global_batch_size, cluster)
    of = machine(accelerator, profile)
    one = _Search(model, tuple(plans), of, global_batch_size, sizes, vary)
    fewer = fewer_devices(cluster) if objective == "cost" and global_batch_size is None else ()
    found = one.on(cluster, on_progress)
    if objective != "headroom":
        one.reconsider(found, cluster, 1.0 if closely else _WORTH_A_REPLAY)
    if closely:
        one.confirm(found, objective)
    best = {candidate.plan.name: candidate for candidate in one.best_of(found, objective)}
    for smaller_cluster in fewer:
        for candidate in one.best_of(one.on(smaller_cluster), objective):
            known = best.get(candidate.plan.name)
            if known is None or _rank(candidate, objective) < _rank(known, objective):
                best[candidate.plan.name] = candidate
    ordered = settled(sorted(best.values(), key=lambda candidate: _rank(candidate, objective)), objective)
    winner = one.weighed(ordered[0]) if ordered else None
    return SearchResult(
        model=model,
        cluster=cluster,
        objective=objective,
        winner=winner,
        runners_up=tuple(one.weighed(candidate) for candidate in ordered[1:4]),
        ranked=tuple(ordered),
        front=one.front(found),
        rejected=one.rejected(found.strategies, ordered, cluster, objective),
        what_if=one.what_if(found, cluster, winner) if what_if else (),
        num_candidates=one.num_candidates,
        profile=of.profile.description,
        measured=of.measured,
    )


def _rank(candidate: Candidate, objective: str) -> tuple[float, float, str]:
    """Smaller is better; ties go to the faster one, then by name, so that the order is always the same."""
    if objective == "headroom":
        first = -float(candidate.headroom_bytes or 0)
    elif objective == "cost":
        first = candidate.device_seconds_per_token
    else:
        first = -candidate.tokens_per_s
    return first, -candidate.tokens_per_s, candidate.plan.name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Strategy:
    """One strategy on one cluster: its memory with the smallest micro batch, and with the largest that fits."""

    plan: Plan
    smallest: Weight
    largest: Weight | None
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What was found on one cluster: the candidates that fit, and every strategy."""

    candidates: list[Candidate]
    strategies: list[_Strategy]


class _Search:
    def __init__(
        self,
        model: ModelShape,
        plans: tuple[Plan, ...],
        of: Machine,
        global_batch_size: int | None,
        sizes: tuple[int, ...],
        vary: bool,
    ) -> None:
        self.model, self.plans, self.of = model, plans, of
        self.global_batch_size, self.vary = global_batch_size, vary
        self.sizes = micro_batches(sizes)
        self.num_candidates = 0
        self._weights: dict[tuple[Plan, Cluster], Weight] = {}
        self._timers: dict[Cluster, StepTimer] = {}
        #: Why a strategy has no times, by its name.
        self.untimed: dict[str, str] = {}

    def on(self, cluster: Cluster, on_progress: Callable[[int, int], None] | None = None) -> _Found:
        """All candidates on ``cluster`` that fit."""
        found = _Found(candidates=[], strategies=[])
        for index, plan in enumerate(self.plans):
            strategy = self.bisected(plan, cluster)
            found.strategies.append(strategy)
            known = [candidate for size in strategy.sizes if (candidate := self.timed(plan, size, cluster)) is not None]
            found.candidates.extend(known)
            if known and self.vary:
                found.candidates.extend(self.faster(plan, known, cluster))
            if on_progress is not None:
                on_progress(index + 1, len(self.plans))
        return found

    def bisected(self, plan: Plan, cluster: Cluster) -> _Strategy:
        """The micro batches that fit: all up to the largest, since memory never falls with a sample more.

        A peak is a maximum of straight lines but for the rounding of blocks, so that beyond two sizes that fit the line
        through them is hardly too high: what does not fit by the line needs no walk.
        """
        sizes = [size for size in self.sizes if self.steps(plan, size, cluster) is not None] or self.sizes[:1]
        weights = {0: self.weight(plan, sizes[0], cluster)}
        low, high = (0, len(sizes)) if weights[0].fits else (-1, 0)
        second = min(_SECOND, len(sizes) - 1)
        while low + 1 < high:
            tried = second if len(weights) == 1 else high - 1 if len(weights) == 2 else (low + high) // 2
            weights[tried] = self.weight(plan, sizes[tried], cluster)
            low, high = (tried, high) if weights[tried].fits else (low, tried)
            if low == second == tried:
                high = min(high, reach(sizes, second, weights[0], weights[second]))
        return _Strategy(plan=plan, smallest=weights[0], largest=weights.get(low), sizes=tuple(sizes[: low + 1]))

    def steps(self, plan: Plan, size: int, cluster: Cluster) -> int | None:
        return accumulations(size, cluster, self.global_batch_size, plan.workload.gradient_accumulation_steps)

    def weight(self, plan: Plan, size: int, cluster: Cluster) -> Weight:
        steps = self.steps(plan, size, cluster) or plan.workload.gradient_accumulation_steps
        return self.weigh(with_batch(plan, size, steps), cluster)

    def weigh(self, plan: Plan, cluster: Cluster) -> Weight:
        """The memory of a plan, walked once."""
        key = (plan, cluster)
        if key not in self._weights:
            self._weights[key] = weigh(self.model, plan, cluster)
        return self._weights[key]

    def timed(self, plan: Plan, size: int, cluster: Cluster) -> Candidate | None:
        """The candidate with this micro batch; None when the global batch is no multiple of it, or it has no times."""
        steps = self.steps(plan, size, cluster)
        if steps is None:
            return None
        self.num_candidates += 1
        tried = with_batch(plan, size, steps)
        timer = self._timers.get(cluster)
        if timer is None:
            timer = self._timers[cluster] = StepTimer(self.model, cluster, self.of)
        try:
            time = timer.of(tried)
        except NoDriveError as error:
            self.untimed[plan.name] = str(error)
            return None
        return Candidate(plan=tried, cluster=cluster, time=time)

    def faster(self, plan: Plan, known: list[Candidate], cluster: Cluster) -> list[Candidate]:
        """Variations of ``plan`` that are faster than ``known`` and fit."""
        best = max(candidate.tokens_per_s for candidate in known)
        sizes = [candidate.plan.workload.micro_batch_size for candidate in known]
        tried = [
            candidate
            for other in list(variations(plan, self.model))[1:]
            for size in sizes
            if (candidate := self.timed(other, size, cluster)) is not None
        ]
        tried.sort(key=lambda candidate: _rank(candidate, "speed"))
        for candidate in tried[:_WALKED]:
            if candidate.tokens_per_s < _WORTH * best:
                break
            weight = self.weigh(candidate.plan, cluster)
            if weight.fits:
                return [_with(candidate, weight)]
        return []

    def weighed(self, candidate: Candidate) -> Candidate:
        """The candidate with its memory."""
        if candidate.device_bytes is not None:
            return candidate
        return _with(candidate, self.weigh(candidate.plan, candidate.cluster))

    def reconsider(self, found: _Found, cluster: Cluster, worth: float) -> None:
        """Add what only the bound refuses and the replay of the allocator calls ``fits``, if it is so much faster."""
        more = reconsidered(
            self.model,
            self.plans,
            [size for size in self.sizes if any(self.steps(plan, size, cluster) for plan in self.plans)],
            weight=lambda plan, size: self.weight(plan, size, cluster),
            timed=lambda plan, size: self.timed(plan, size, cluster),
            best=worth * max((one.tokens_per_s for one in found.candidates), default=0.0),
        )
        found.candidates.extend(self.weighed(one) for one in more)

    def confirm(self, found: _Found, objective: str) -> None:
        """Drop the best until the replay of the allocator calls one ``fits``."""
        while found.candidates:
            ordered = sorted(self.best_of(found, objective), key=lambda one: _rank(one, objective))
            best = settled(ordered, objective)[0]
            if lives(self.model, best):
                return
            found.candidates[:] = [one for one in found.candidates if one.plan != best.plan]

    def best_of(self, found: _Found, objective: str) -> list[Candidate]:
        """The best candidate of each strategy."""
        candidates = found.candidates
        if objective == "headroom":
            # Fewer samples are never larger: of each strategy the smallest micro batch is enough.
            smallest: dict[str, Candidate] = {}
            for candidate in candidates:
                name, size = candidate.plan.name, candidate.plan.workload.micro_batch_size
                if name not in smallest or size < smallest[name].plan.workload.micro_batch_size:
                    smallest[name] = candidate
            candidates = [self.weighed(candidate) for candidate in smallest.values()]
        best: dict[str, Candidate] = {}
        for candidate in sorted(candidates, key=lambda one: _rank(one, objective)):
            best.setdefault(candidate.plan.name, candidate)
        return list(best.values())

    def front(self, found: _Found) -> tuple[Candidate, ...]:
        """Candidates than which none is both faster and smaller.

        Memory between the smallest and the largest micro batch is first taken from a straight line, which is hardly too
        low (a peak is a maximum of straight lines but for rounding); those that remain are walked.
        """
        by_name = {strategy.plan.name: strategy for strategy in found.strategies}

        def with_guess(candidate: Candidate) -> Candidate:
            strategy = by_name[candidate.plan.name]
            if candidate.device_bytes is not None or strategy.largest is None:
                return candidate
            first, last = strategy.sizes[0], strategy.sizes[-1]
            low, high = strategy.smallest.device_bytes, strategy.largest.device_bytes
            share = (candidate.plan.workload.micro_batch_size - first) / max(1, last - first)
            return replace(candidate, device_bytes=round(low + share * (high - low)))

        kept = front([with_guess(candidate) for candidate in found.candidates])
        exact = [_with(one, self.weigh(one.plan, one.cluster)) for one in spread(kept, _FRONT)]
        return tuple(front(exact))

    def rejected(
        self, strategies: Sequence[_Strategy], ordered: list[Candidate], cluster: Cluster, objective: str
    ) -> tuple[Rejected, ...]:
        """Why each other strategy was not taken."""
        best = {candidate.plan.name: candidate for candidate in ordered}
        found = []
        for strategy in strategies:
            name = strategy.plan.name
            if ordered and ordered[0].plan.name == name:
                continue
            if name not in best:
                why = strategy.smallest.why or self.untimed.get(name) or "no micro batch makes up the global batch"
                terms = self._terms(strategy, cluster) if strategy.smallest.why else ()
                found.append(Rejected(strategy=name, fits=False, why=why, terms=terms))
                continue
            share = best[name].tokens_per_s / ordered[0].tokens_per_s - 1
            slower = f"{abs(100 * share):.1f} % {'slower' if share <= 0 else 'faster'}"
            if share > 0 and objective == "speed":
                slower += ", less than measurements of one step lie apart"
            found.append(Rejected(strategy=name, fits=True, why=f"{slower}; mostly {best[name].time.dominant}"))
        return tuple(found)

    def _terms(self, strategy: _Strategy, cluster: Cluster) -> tuple[tuple[str, int], ...]:
        """The largest terms at the peak with the smallest micro batch."""
        plan = strategy.plan
        sizes = [size for size in self.sizes if self.steps(plan, size, cluster) is not None] or self.sizes[:1]
        steps = self.steps(plan, sizes[0], cluster) or plan.workload.gradient_accumulation_steps
        return largest_terms(self.model, with_batch(plan, sizes[0], steps), cluster, strategy.smallest, _TERMS)

    def what_if(self, found: _Found, cluster: Cluster, winner: Candidate | None) -> tuple[WhatIf, ...]:
        """One more device in each node; twice the host memory where that is what some strategy lacks.

        Without variations, and the winner is taken without as well. The ranks may not share the wanted batch evenly
        there: what counts is tokens a second.
        """
        changes = [("one more GPU in each node", replace(cluster, gpus_per_node=cluster.gpus_per_node + 1))]
        if cluster.host_memory_bytes is not None and any(one.smallest.short_of_host for one in found.strategies):
            doubled = replace(cluster, host_memory_bytes=2 * cluster.host_memory_bytes)
            changes.append(("twice the host memory", doubled))
        plain = [one for one in found.candidates if any(one.plan.zero == plan.zero for plan in self.plans)]
        here = max((one.tokens_per_s for one in plain), default=None)
        result = []
        for words, other in changes:
            alone = _Search(self.model, self._hopeful(winner), self.of, None, (), False)
            candidates = alone.best_of(alone.on(other), "speed")
            self.num_candidates += alone.num_candidates
            best = min(candidates, key=lambda one: _rank(one, "speed"), default=None)
            gain = None if best is None or here is None else best.tokens_per_s / here - 1
            result.append(WhatIf(change=words, best=best, gain=gain))
        return tuple(result)

    def _hopeful(self, winner: Candidate | None) -> tuple[Plan, ...]:
        """The strategies that could be the best elsewhere: the winner's, and what would beat it if it fitted."""
        if winner is None:
            return self.plans
        size = winner.plan.workload.micro_batch_size
        return tuple(
            plan
            for plan in self.plans
            if plan.name == winner.plan.name
            or (timed := self.timed(plan, size, winner.cluster)) is None
            or timed.tokens_per_s > winner.tokens_per_s
        )


def _with(candidate: Candidate, weight: Weight) -> Candidate:
    return replace(
        candidate,
        device_bytes=weight.device_bytes,
        host_bytes=weight.host_bytes,
        headroom_bytes=weight.headroom_bytes,
    )
