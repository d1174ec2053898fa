"""Errors within a backward pass, which nobody would see: they are told before they are raised.

autograd runs what is on the pretend device in a thread of its own, and there an error of Python's ends the process
(``terminate called without an active exception``): torch's guard of such a device calls Python while it unwinds
(torch/utils/backend_registration.py, _setup_privateuseone_for_python_backend).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from runner.device.fake.hidden import in_backward

_listeners: list[Callable[[BaseException], None]] = []


def tell(listener: Callable[[BaseException], None]) -> None:
    """From now on call ``listener`` with each error that would be lost."""
    _listeners.append(listener)


def tell_of(error: BaseException) -> None:
    """Tell of an error that is about to be raised, if it would be lost."""
    if in_backward():
        traceback.print_exception(error)
        for listener in _listeners:
            listener(error)
