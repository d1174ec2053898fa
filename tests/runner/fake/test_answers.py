"""runner.device.fake.answers and streams: what is said where there is no data, and order without a device."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")

import torch

from dsplan.overhead import ProcessMemory
from runner.device.fake.answers import Answers
from runner.device.fake.memory import Memory, PlainAllocator
from runner.device.fake.streams import Event, Streams


@pytest.mark.parametrize(
    ("dtype", "answer"),
    [
        (torch.float32, 1.0),
        (torch.bfloat16, 1.0),
        (torch.float16, 1.0),
        (torch.int64, 0),
        (torch.uint8, 0),
        (torch.bool, False),
    ],
)
def test_training_goes_well(dtype: torch.dtype, answer: object) -> None:
    given = Answers().item(torch.empty((), dtype=dtype))
    assert (given, type(given)) == (answer, type(answer))


def test_answers_are_counted_by_question_answer_and_line() -> None:
    def asked(answers: Answers) -> None:  # the line that asked is this one's caller's, two frames up
        answers.item(torch.empty(()))

    answers = Answers()
    assert answers.to_document() == []
    for _ in range(3):
        asked(answers)
    assert answers.equal() is True
    first, second = answers.to_document()
    assert (first["question"], first["answer"], first["count"]) == ("item", "1.0", 3)
    assert (second["question"], second["answer"], second["count"]) == ("equal", "True", 1)


def test_steps_that_are_to_be_skipped_overflow_and_nothing_else_changes() -> None:
    def item(answers: Answers) -> object:  # as the dispatcher asks, for the line that called it
        return answers.item(torch.empty((), dtype=torch.uint8))

    def has_overflow(answers: Answers) -> object:
        return item(answers)

    answers = Answers(skipped_steps=1)
    assert item(answers) == 0
    assert has_overflow(answers) == 1
    answers.step_ended()
    assert has_overflow(answers) == 0


@pytest.fixture
def memory() -> Memory:
    return Memory(PlainAllocator(), ProcessMemory(start_bytes=0, engine_bytes=0, steps_bytes=0))


def test_a_stream_is_current_while_it_is_entered(memory: Memory) -> None:
    streams = Streams(memory)
    side, other = streams.new(), streams.new()
    assert (memory.stream, streams.current) == (0, streams.default)
    with side:
        assert memory.stream == side.stream_id == 1
        with other, other:
            assert memory.stream == other.stream_id == 2
        assert streams.current is side
    assert (memory.stream, streams.current) == (0, streams.default)


def test_a_stream_is_left_also_by_an_exception(memory: Memory) -> None:
    streams = Streams(memory)
    with pytest.raises(KeyError), streams.new():
        raise KeyError
    assert streams.current is streams.default


def test_everything_has_happened(memory: Memory) -> None:
    stream, event = Streams(memory).new(), Event(enable_timing=True)
    assert stream.record_event(event) is event
    assert isinstance(stream.record_event(), Event)
    event.record(stream)
    stream.wait_event(event)
    assert stream.query()
    assert event.query()
    assert math.isnan(event.elapsed_time(Event()))
