"""The ledger of events of a dry run: every storage taken and given back, in order, and what can be made of it.

The run writes it as lines of JSON (``runner/device/fake/events.py``), in which

- ``alloc`` takes ``size_bytes`` (of the device the whole block, of which ``requested_bytes`` were asked for) with its
  place, dtype, stream, address, the module whose forward pass it was, the operator, function and line of source;
- ``free`` gives back what event ``of`` took;
- ``oom`` asked for ``requested_bytes`` that the device did not have;
- ``phase_begin`` and ``phase_end`` enclose a phase of a step; only the end names it.

Levels (``allocated_bytes``, ``reserved_bytes``) are the device's after the event.
"""
