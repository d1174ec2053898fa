"""Repeats: of Muon's work on one set of matrices what it came to, for those that are met as it was."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from dsplan.ledger import Ledger

StateT = TypeVar("StateT")


class Repeats(Generic[StateT]):
    """What has been done before, by all that it depends on: its (rise, net) in device bytes, and what it left."""

    def __init__(self) -> None:
        self._done: dict[Hashable, tuple[int, int, StateT]] = {}

    def take(self, ledger: Ledger, key: Hashable, act: Callable[[], StateT]) -> StateT:
        """As ``act``, which is called where ``key`` is new; what it leaves on the device goes into ``ledger``.

        Args:
            act: allocates on the device alone, at one moment, and returns the state that it leaves, which nobody
                writes to.
        """
        found = self._done.get(key)
        if found is None:
            left: list[StateT] = []
            rise, net = ledger.effect(lambda: left.append(act()))
            found = self._done[key] = rise, net, left[0]
        rise, net, state = found
        ledger.rise_and_settle(rise, net)
        return state
