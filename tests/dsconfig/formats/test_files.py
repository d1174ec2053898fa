"""Names of files that belong together, and writing all of them or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsplan.dsconfig.formats import FORMATS, render, together
from dsplan.dsconfig.formats.names import beside, pair
from dsplan.dsconfig.formats.target import EmittedFile
from dsplan.dsconfig.formats.together import write_together
from dsplan.errors import InputError
from dsplan.files import write_text

from .readers import target


@pytest.mark.parametrize(
    ("path", "other"),
    [
        ("ds_config.json", "other.yaml"),
        ("a/ds_config.json", "a/other.yaml"),
        ("ds_config_zero3.json", "other_zero3.yaml"),
        ("ds_config-zero3.json", "other_zero3.yaml"),
        ("ds_configuration.json", "other_ds_configuration.yaml"),
        ("gpt2", "other_gpt2.yaml"),
    ],
)
def test_what_a_name_has_more_than_the_usual_one_the_other_has_too(path: str, other: str) -> None:
    assert beside(Path(path), "ds_config.json", "other.yaml") == Path(other)


def test_a_suffix_says_which_of_two_files_is_named() -> None:
    assert pair(Path("x.YML"), "a.yaml", (".yaml", ".yml")) == (Path("ds_config_x.json"), Path("x.YML"))
    assert pair(Path("x"), "a.yaml", (".yaml", ".yml")) == (Path("x"), Path("a_x.yaml"))


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_script_is_no_configuration(format_name: str) -> None:
    with pytest.raises(InputError, match=r"run\.sh: the DeepSpeed configuration is JSON; name a file"):
        render(format_name, target(output="run.sh"))


@pytest.mark.parametrize("name", ["a\nb.json", "a\tb.json", "\udc80.json", "a\x00.json"])
def test_a_name_that_a_script_cannot_hold(name: str) -> None:
    with pytest.raises(InputError, match="cannot be printed"):
        render("launch", target(output=name))


def test_a_name_that_a_launcher_takes_for_an_option() -> None:
    with pytest.raises(InputError, match=r"-x\.json: a launcher takes what begins with - for an option"):
        render("launch", target(output="-x.json"))


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(InputError, match="--format: unknown value 'accelerat'; did you mean accelerate"):
        render("accelerat", target())


FILES = (EmittedFile(path=Path("a"), content="A\n"), EmittedFile(path=Path("b"), content="B\n"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_all_files_are_written(folder: Path) -> None:
    write_together(FILES, force=False)
    assert contents(folder) == {"a": "A\n", "b": "B\n"}


@pytest.mark.parametrize("existing", ["a", "b"])
def test_one_that_exists_stops_all(folder: Path, existing: str) -> None:
    (folder / existing).write_text("mine")
    with pytest.raises(InputError, match=f"{existing}: exists already"):
        write_together(FILES, force=False)
    assert contents(folder) == {existing: "mine"}
    write_together(FILES, force=True)
    assert contents(folder) == {"a": "A\n", "b": "B\n"}


def test_two_files_of_one_name(folder: Path) -> None:
    with pytest.raises(InputError, match="two of the files"):
        write_together((*FILES, FILES[0]), force=True)
    with pytest.raises(InputError, match="hostfile: two of the files"):
        write_together(render("launch", target(output="hostfile")).files[:1] + FILES_OF_HOSTFILE, force=True)
    assert contents(folder) == {}


FILES_OF_HOSTFILE = (EmittedFile(path=Path("hostfile"), content="node-0 slots=1\n"),)


@pytest.mark.parametrize("before", [None, b"mine\xff"])
@pytest.mark.parametrize("error", [InputError("b: cannot be written"), KeyboardInterrupt()])
def test_a_second_file_that_fails_takes_the_first_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None, error: BaseException
) -> None:
    if before is not None:
        (folder / "a").write_bytes(before)

    def fails_at_b(path: Path, text: str, *, force: bool) -> None:
        if path.name == "b":
            assert (folder / "a").read_text() == "A\n"
            raise error
        write_text(path, text, force=force)

    monkeypatch.setattr(together, "write_text", fails_at_b)
    with pytest.raises(type(error)):
        write_together(FILES, force=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == ({} if before is None else {"a": before})
