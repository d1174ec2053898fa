"""The configurations in JSON, Hjson and Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsplan.check import hjson_tree, markdown
from dsplan.check.configuration import Configuration, Run
from dsplan.check.finding import Finding
from dsplan.check.known import TOP, known_keys
from dsplan.check.rules.text import text_finding
from dsplan.check.tree import SYNTAX, Lines, Problem, Section
from dsplan.errors import InputError
from dsplan.files import read_at_most

_MARKDOWN = (".md", ".markdown", ".mdx")
#: Longer files are no configurations.
_LARGEST_BYTES = 4 * 2**20
#: One of these makes a block of JSON a DeepSpeed configuration; of the other keys it takes two.
_TELLING = ("zero_optimization", "train_micro_batch_size_per_gpu", "zero_allow_untested_optimizer")
_ENOUGH_KEYS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a file holds: its configurations, and what its form gives to say."""

    configurations: tuple[Configuration, ...]
    findings: tuple[Finding, ...]


def read_plain(path: Path, run: Run) -> Source:
    """The configurations in a file of JSON, Hjson or Markdown.

    Raises:
        InputError: there is no such file, it is a folder, or it is too large.
    """
    text = read_text(path)
    if text is None:
        return no_text(path, run)
    return _markdown(path, text, run) if path.suffix.lower() in _MARKDOWN else _json(path, text, run)


def no_text(path: Path, run: Run) -> Source:
    """What is said about a file that is no text."""
    problem = Problem(kind=SYNTAX, offset=0, message="this is not UTF-8 text", instead="save it as UTF-8")
    return Source(configurations=(), findings=(text_finding(path, Lines(""), problem, run.consumer),))


def read_text(path: Path) -> str | None:
    """The text of a file with its line ends as they are; None when it is no text.

    Raises:
        InputError: there is no such file, it is a folder, or it is too large.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name the files in it")
        content = read_at_most(path, _LARGEST_BYTES)
        if content is None:
            raise InputError(f"{path}: is larger than {_LARGEST_BYTES} bytes, which no configuration is")
        # Offsets count the characters of the file, so that line ends stay what they are.
        return content.decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError:
        return None


def _json(path: Path, text: str, run: Run) -> Source:
    lines = Lines(text)
    parsed = hjson_tree.parse(text)
    findings = [text_finding(path, lines, problem, run.consumer) for problem in parsed.problems]
    if parsed.root is None:
        return Source(configurations=(), findings=tuple(findings))
    if not isinstance(parsed.root, Section):
        problem = Problem(kind=SYNTAX, offset=parsed.root.offset, message="a list, where DeepSpeed needs {...}")
        return Source(configurations=(), findings=(*findings, text_finding(path, lines, problem, run.consumer)))
    config = Configuration(
        path=path, lines=lines, root=parsed.root, run=run, complete=not parsed.broken, title=path.stem
    )
    return Source(configurations=(config,), findings=tuple(findings))


def _markdown(path: Path, text: str, run: Run) -> Source:
    lines, found, findings = Lines(text), [], []
    for block in markdown.blocks(text):
        parsed = hjson_tree.parse(block.text, block.start)
        if not isinstance(parsed.root, Section) or not is_configuration(parsed.root):
            continue
        # What stands in a document may be an excerpt; the batch sizes show that it is not meant as one.
        keys = {member.key for member in parsed.root.members}
        whole = bool(keys & {"train_batch_size", "train_micro_batch_size_per_gpu"}) and not block.left_out
        shown = [problem for problem in parsed.problems if whole or not problem.message.startswith(_OF_EXCERPTS)]
        findings += [text_finding(path, lines, problem, run.consumer) for problem in shown]
        found.append(
            Configuration(
                path=path,
                lines=lines,
                root=parsed.root,
                run=run,
                complete=whole and not parsed.broken,
                alone=False,
                title=block.heading,
            )
        )
    return Source(configurations=tuple(found), findings=tuple(findings))


#: What an excerpt may have: it begins within the braces, and its last comma stands before what is left out.
_OF_EXCERPTS = ("no braces around the whole", "a comma before the closing")


def is_configuration(root: Section) -> bool:
    """Whether a section looks like a DeepSpeed configuration."""
    keys = [member.key for member in root.members]
    if any(key in _TELLING for key in keys):
        return True
    known = known_keys(TOP)
    return sum(key in known for key in keys) >= _ENOUGH_KEYS and all(key in known for key in keys)
