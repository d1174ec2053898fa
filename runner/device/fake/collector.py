"""Python's garbage collector in the child process of a dry run: it need not go through a million imported objects.

What a model, DeepSpeed and autograd leave in cycles is found by the collections of young objects, and by full ones
where the program asks for them. Of itself Python makes a full one when what has survived has grown by a quarter
(Modules/gcmodule.c, gc_collect_generations): with torch, DeepSpeed and the compiler imported not within a few steps.
Frozen objects do not count for that rule, which is switched off instead.
"""

from __future__ import annotations

import gc

_NEVER = 1 << 30


def begin() -> None:
    """Collect from here on what is made from here on."""
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], _NEVER)
    gc.enable()
