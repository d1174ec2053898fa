"""Compile one of DeepSpeed's operators that an engine needs: ``python -m runner.calibrate_compile NAME``.

A process of its own, so that the first calibration of a machine compiles beside what it measures by the device's clock.
A rank that loads the operator meanwhile waits for it; one that failed here fails there again, and says why.
"""

from __future__ import annotations

import sys

#: DeepSpeed's names of the operators that engines on every device need.
NAMES = ("cpu_adam", "fused_adam")


def main() -> None:
    """Compile the operator in the arguments; nothing where torch's cache of extensions holds it."""
    from runner.compiling import announce_compilation, compiled, extension_folder

    name = sys.argv[1]
    if not compiled(extension_folder(name)):
        announce_compilation(lambda _: None, back_to=lambda: "")  # and wait for nobody who is gone
        load(name)


def load(name: str) -> None:
    """Load the operator as DeepSpeed does, which compiles it first where nobody has; the accelerator's own."""
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder

    builders = {"cpu_adam": CPUAdamBuilder, "fused_adam": FusedAdamBuilder}
    builders[name]().load(verbose=False)


if __name__ == "__main__":
    main()
