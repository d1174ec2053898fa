"""A file that has no end is refused for its size, whoever reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dsplan.check.configuration import Run
from dsplan.check.run import check_files
from dsplan.dsconfig.document import load_document
from dsplan.errors import InputError
from dsplan.files import read_at_most
from dsplan.modelfile import read_model
from dsplan.records import read_record

ENDLESS = Path("/dev/zero")


def test_a_file_is_read_up_to_a_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_at_most(path, 5) == b"12345"
    assert read_at_most(path, 4) is None


@pytest.mark.skipif(not ENDLESS.exists(), reason="there is no /dev/zero")
@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda path: check_files([path], Run()), "is larger than 4194304 bytes, which no configuration is"),
        (load_document, "is too large for a configuration; at most 4,194,304 bytes"),
        (read_model, "is too large for a model file; at most 4,194,304 bytes"),
        (lambda path: read_record(path, "measurement"), "is too large for a record; at most 67,108,864 bytes"),
    ],
)
def test_a_device_is_not_read_for_ever(read: Callable[[Path], object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        read(ENDLESS)
    assert str(caught.value) == f"/dev/zero: {said}"
