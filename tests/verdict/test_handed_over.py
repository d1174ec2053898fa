"""The gradient between two pieces: what one ends with the next begins with, or it goes."""

from __future__ import annotations

from dsplan.catalogue import accelerator
from dsplan.kernels import kernels_of
from dsplan.operators import BACKWARD
from dsplan.verdict.operations import RELEASE
from dsplan.verdict.recorder import Recorder
from dsplan.verdict.requests import Numbered, Request

SIZE = 4096


def _at_the_next_block() -> tuple[Recorder, Request]:
    """A recorder at the turn from one block to the next, and the gradient that the first ended with."""
    recorder = Recorder(Numbered.of(kernels_of(accelerator("h200"))))
    recorder.begin_step("steady state")
    recorder.begin("backward")
    gradient = Request(SIZE)
    recorder.event(BACKWARD, gradient, 1)
    recorder.event(BACKWARD, -gradient, -1)
    recorder.moment = "backward of block 1"
    return recorder, gradient


def test_a_numbered_gradient_is_handed_over() -> None:
    recorder, _ = _at_the_next_block()
    recorder.event(BACKWARD, Request(SIZE), 1)
    assert [size for size, _ in recorder.operations] == [SIZE]


def test_one_without_a_number_begins_after_the_last_is_gone() -> None:
    recorder, _ = _at_the_next_block()
    recorder.event(BACKWARD, SIZE, 1)
    assert [size for size, _ in recorder.operations] == [SIZE, RELEASE, SIZE]
