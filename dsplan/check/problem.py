"""What a reader of a file has to say about its form."""

from __future__ import annotations

from dataclasses import dataclass

#: DeepSpeed's own reader refuses the text, or reads something else than what stands there.
SYNTAX = "syntax"
#: DeepSpeed's reader (Hjson) takes it; a JSON parser does not.
RELAXED = "relaxed"
#: A key that is given twice in one section.
TWICE = "twice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One remark; ``kind`` is one of the constants above and ``offset`` says where in the file."""

    kind: str
    offset: int
    message: str
    instead: str = ""
