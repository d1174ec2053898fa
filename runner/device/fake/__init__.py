"""The dry run's device: DeepSpeed's real engine over fake tensors on a pretend accelerator. See docs/dry-run.md.

``memory`` counts, ``tracking`` sees what operators allocate, ``hidden`` adds what kernels allocate unseen,
``accelerator``, ``streams``, ``group`` and ``native`` pretend, ``answers`` replies to what only data could
tell, ``patches`` makes torch and DeepSpeed take part. All of it happens in the child process of one run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.device.fake.versions import require_tested
from runner.spec import RunSpec

if TYPE_CHECKING:
    from runner.device.fake.device import FakeDevice


def open_fake_device(spec: RunSpec) -> FakeDevice:
    """The device of the dry run ``spec``; see :class:`runner.device.fake.device.FakeDevice`.

    Raises:
        dsplan.errors.InputError: this torch or DeepSpeed is not one that the dry run is tested with.
    """
    require_tested(force=spec.force)
    from runner.device.fake.device import FakeDevice  # imports what other versions may not have

    return FakeDevice(spec)
