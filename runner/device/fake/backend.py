"""The pretend device as torch knows it: its PrivateUse1 backend under another name, without kernels."""

from __future__ import annotations

import torch
from torch.utils import backend_registration

#: What torch calls the pretend device.
NAME = "pretend"
#: What torch.distributed calls the backend that sends nothing.
BACKEND = "fake"


class _Module(backend_registration._DummyBackendModule):
    """``torch.pretend``, as far as torch itself asks for it."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Asked for wherever code enters autocast, if only to switch it off (deepspeed/runtime/zero/linear.py)."""
        return [torch.bfloat16, torch.float16]


def register() -> None:
    """Make ``torch.device("pretend")``; at most once in a process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
