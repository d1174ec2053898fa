"""DeepSpeed configurations: read, check, tune, emit, launch.

Everything here follows DeepSpeed 0.19.8, whose code is the authority; DeepSpeed itself is never
imported (:mod:`dsplan.dsconfig.deepspeed_parser` asks it in a subprocess).
"""

#: The DeepSpeed release whose keys, defaults and rules this package knows.
DEEPSPEED_VERSION = "0.19.8"
