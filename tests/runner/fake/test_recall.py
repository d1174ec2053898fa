"""What is remembered of operators comes to what torch answers when it is asked anew."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from runner.device.fake import collector
from runner.device.fake.collectives import COLLECTIVES, any_known
from runner.device.fake.light import empty, template_of, view
from runner.device.fake.recall import Known, Recall, key_of

aten = torch.ops.aten


class Remembering(TorchDispatchMode):
    """Answers from memory where it can, and counts the operators of which it cannot."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recall = Recall()
        self.asked = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, _ = self.recall.answer(func, args, kwargs or {}, self.long_way)
        return result

    def long_way(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.asked += func is not torch.ops.prim.device.default  # which is no operator of anybody's
        return func(*args, **kwargs)


def described(result: Any, sources: list[torch.Tensor]) -> Any:
    """All that can be told of a result, and whose storage it lies in."""
    if isinstance(result, (list, tuple)):
        return [described(each, sources) for each in result]
    if not isinstance(result, torch.Tensor):
        return result
    storages = [source.untyped_storage()._cdata for source in sources]
    storage = result.untyped_storage()
    return (
        *(type(result), result.shape, result.stride(), result.storage_offset(), result.dtype, result.device),
        *(result.requires_grad, result.layout, storage.nbytes(), torch._C._dispatch_keys(result).raw_repr()),
        storages.index(storage._cdata) if storage._cdata in storages else None,
        [index for index, source in enumerate(sources) if source is result],
    )


def tensors(offset: int) -> list[torch.Tensor]:
    base = torch.empty(200)
    return [base[offset : offset + 48].view(6, 8), torch.empty(8, 3), torch.empty(6, 8, dtype=torch.bfloat16)]


CASES: dict[str, Callable[[list[torch.Tensor]], Any]] = {
    "view": lambda t: aten.view.default(t[0], [48]),
    "unsafe view": lambda t: aten._unsafe_view.default(t[0], [4, 12]),
    "detach": lambda t: aten.detach.default(t[0]),
    "transpose": lambda t: aten.t.default(t[0]),
    "slice": lambda t: aten.slice.Tensor(t[0], 0, 2, 5),
    "select": lambda t: aten.select.int(t[0], 0, 3),
    "split": lambda t: aten.split.Tensor(t[0], 3, 1),
    "expand": lambda t: aten.expand.default(aten.unsqueeze.default(t[0], 0), [5, 6, 8]),
    "placed": lambda t: aten.as_strided.default(t[0], [2, 2], [2, 1], 1),
    "placed by itself": lambda t: aten.as_strided.default(t[0], [2, 2], [2, 1]),
    "other type": lambda t: aten.view.dtype(t[0], torch.bfloat16),
    "product": lambda t: aten.mm.default(t[0], t[1]),
    "in place": lambda t: aten.add_.Tensor(t[0], t[2]),
    "cast": lambda t: aten._to_copy.default(t[0], dtype=torch.float16),
    "dropout": lambda t: aten.native_dropout.default(t[0], 0.1, True),
    "norm": lambda t: aten.native_layer_norm.default(t[0], [8], None, None, 1e-5),
    "joined": lambda t: aten.cat.default([t[0], t[0]], 1),
    "joined into": lambda t: aten.cat.out([t[0], t[0]], 0, out=torch.empty(12, 8)),
    "made": lambda _: aten.empty.memory_format([3, 4], dtype=torch.bfloat16),
    "nothing": lambda t: aten._foreach_add_.Scalar([t[0], t[1]], 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_second_time_is_as_the_first(name: str) -> None:
    with FakeTensorMode():
        for offset in (0, 16, 16, 32):  # the same arguments, elsewhere in their storage
            given = tensors(offset)
            expected = described(CASES[name](given), given)
            with Remembering() as mode:
                CASES[name](tensors(0))
                asked = mode.asked
                given = tensors(offset)
                with torch.no_grad():
                    found = described(CASES[name](given), given)
            assert found == expected
            assert mode.asked <= 2 * asked


def test_what_is_remembered_is_not_asked_again() -> None:
    with FakeTensorMode():
        first, second = tensors(0), tensors(32)
        with Remembering() as mode:
            for given in (first, second):
                for name in ("view", "unsafe view", "slice", "split", "product", "in place", "dropout"):
                    CASES[name](given)
                if given is first:
                    asked = mode.asked
        assert mode.asked == asked


def test_numbers_of_different_types_are_different() -> None:
    with FakeTensorMode():
        tensor = torch.empty(3, dtype=torch.int64)
        keys = [key_of(aten.mul.Tensor, (tensor, number), {}) for number in (1, 1.0, True)]
        assert len(set(keys)) == len(keys)
        with Remembering():
            found = [torch.mul(tensor, number).dtype for number in (1, 1.0, True, 1, 1.0, True)]
    assert found == [torch.int64, torch.float32, torch.int64] * 2


def test_a_tensor_with_known_numbers_is_not_remembered() -> None:
    with FakeTensorMode():
        known = torch.tensor(3)
        assert known.constant is not None  # type: ignore[attr-defined]
        assert key_of(aten.add.Tensor, (known, 1), {}) is None
        assert key_of(aten.stack.default, ([known],), {}) is None
        assert any_known(([torch.empty(1), known],))
        assert not any_known(([torch.empty(1)], None, 3))
    assert any_known((torch.empty(1),)), "a tensor that is not fake"


def test_where_a_tensor_lies_matters_to_some_views_alone() -> None:
    with FakeTensorMode():
        one, other = (torch.empty(9)[start : start + 4] for start in (0, 3))
        for func, rest, same in ((aten.view.default, ([4],), True), (aten.as_strided.default, ([2], [1]), False)):
            assert (key_of(func, (one, *rest), {}) == key_of(func, (other, *rest), {})) is same


def test_what_torch_does_not_remember_goes_the_long_way() -> None:
    with FakeTensorMode(), Remembering() as mode:
        tensor = torch.empty(4, 4)
        for _ in range(2):
            tensor = tensor.t_()
            tensor.resize_(4, 4)
    kept = {key[0]: known for key, known in mode.recall._known.items()}
    assert kept[aten.t_.default] is None
    assert kept[aten.resize_.default] is None
    assert isinstance(kept[aten.empty.memory_format], Known)


def test_light_fake_tensors_are_as_torch_makes_them() -> None:
    with FakeTensorMode() as mode:
        template = template_of(mode, torch.device("cpu"))
        made = empty((4, 2), (2, 1), torch.float16, template)
        part = view(made, (2,), (1,), 3, torch.float16, template)
        expected = torch.empty(4, 2, dtype=torch.float16)
    assert type(made) is FakeTensor
    assert described(made, []) == described(expected, [])
    assert vars(made) == vars(expected), "what does torch keep in a fake tensor now?"
    assert described(part, [made]) == described(expected.view(-1)[3:5], [expected])


def test_the_collectives_that_deepspeed_asks_for_have_a_short_way() -> None:
    names = ("_allgather_base_", "_reduce_scatter_base_", "allreduce_", "broadcast_", "alltoall_base_", "barrier")
    assert {getattr(torch.ops.c10d, name).default for name in names} <= set(COLLECTIVES)


def test_the_collector_goes_through_new_objects_only() -> None:
    threshold, frozen = gc.get_threshold(), gc.get_freeze_count()
    try:
        collector.begin()
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
        assert gc.get_threshold()[:2] == threshold[:2]
        cycle: list[Any] = []
        cycle.append(cycle)
        del cycle
        assert gc.collect() >= 1
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
