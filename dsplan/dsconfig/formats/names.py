"""Names of the files that belong together."""

from __future__ import annotations

from pathlib import Path

from dsplan.dsconfig.formats.target import CONFIG_NAME
from dsplan.errors import InputError

#: What says that a file holds something else than JSON.
_OTHER_SUFFIXES = (".yaml", ".yml", ".py", ".sh")


def beside(path: Path, known: str, name: str) -> Path:
    """The file called ``name`` that belongs to ``path``, in the same folder.

    ``known`` is the usual name of ``path``; what ``path`` has more than it, the other file has too:
    ``ds_config_zero3.json`` goes with ``training_arguments_zero3.json``, ``gpt2.json`` with
    ``training_arguments_gpt2.json``.
    """
    stem, usual, other = path.stem, Path(known).stem, Path(name)
    if stem == usual:
        return path.parent / name
    more = stem[len(usual) + 1 :] if stem.startswith((f"{usual}_", f"{usual}-")) else stem
    return path.parent / f"{other.stem}_{more}{other.suffix}"


def pair(output: Path, name: str, suffixes: tuple[str, ...]) -> tuple[Path, Path]:
    """The DeepSpeed configuration and the file called ``name`` that goes with it.

    ``output`` names the second where it ends in one of ``suffixes``, else the first.
    """
    if output.suffix.lower() in suffixes:
        return beside(output, name, CONFIG_NAME), output
    require_json_name(output)
    return output, beside(output, CONFIG_NAME, name)


def require_json_name(output: Path) -> None:
    """Raise InputError when ``output`` ends as a file does that is not JSON."""
    if output.suffix.lower() in _OTHER_SUFFIXES:
        raise InputError(
            f"{output}: the DeepSpeed configuration is JSON; name a file that ends in .json, such as {CONFIG_NAME}"
        )


def require_printable(path: Path) -> None:
    """Raise InputError when the name cannot stand in a script, a YAML file and a launch line as it is."""
    if str(path).startswith("-"):
        raise InputError(f"{path}: a launcher takes what begins with - for an option; choose another name")
    if not str(path).isprintable():
        raise InputError(
            f"{str(path)!r}: characters that cannot be printed are not allowed in the name; choose another name"
        )
