"""Where cudaMalloc puts a segment: the driver's order of addresses.

torch takes the lower of two free blocks of one size (``BlockComparatorSize``), and a model's blocks are full of equal
sizes: which address a segment has decides which one stays partly in use. NVIDIA documents no order. This is the one
that driver 580 shows on an H200 (tests/data/allocator_traces.json; tests/allocator/test_placement.py):

- address space is taken in regions of whole 32 MiB, from the top down, in the highest gap that is large enough;
- a segment goes to the lowest region that has room for it, and only else to a new one;
- a segment whose size is a multiple of 512 MiB is aligned to 512 MiB;
- a region is given up with the last of its segments.

One of 353 recorded segments lay 2 MiB behind the place that these rules give it, and after some of a region's segments
were freed the driver at times does not reuse the first gap; neither is replayed.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from dsplan.units import MIB, round_up

PAGE_BYTES = 2 * MIB  # a segment is a whole number of these
REGION_BYTES = 32 * MIB
LARGE_PAGE_BYTES = 512 * MIB
#: What the context has taken of the first region before torch's first segment.
CONTEXT_BYTES = 6 * MIB
#: An arbitrary end of the address space, a multiple of 512 MiB.
TOP = 1 << 46


class _Region:
    """A region's segments in order of address; ``free_bytes`` lie in gaps between them and behind the last."""

    __slots__ = ("base", "free_bytes", "segments", "size_bytes")

    def __init__(self, base: int, size_bytes: int) -> None:
        self.base = base
        self.size_bytes = self.free_bytes = size_bytes
        self.segments: list[tuple[int, int]] = []  # (address, bytes)

    def take(self, size_bytes: int) -> int | None:
        """The address of the first gap of at least ``size_bytes``, which is taken; None when there is none."""
        if self.free_bytes < size_bytes:
            return None
        at = self.base
        for address, taken in self.segments:
            if address - at >= size_bytes:
                break
            at = address + taken
        if at + size_bytes > self.base + self.size_bytes:
            return None
        insort(self.segments, (at, size_bytes))
        self.free_bytes -= size_bytes
        return at

    def give_back(self, address: int) -> None:
        at = bisect_left(self.segments, (address, 0))
        self.free_bytes += self.segments.pop(at)[1]


class DriverPlacement:
    """The addresses of one process's segments, in bytes; they are multiples of 2 MiB.

    ``top`` is where the first region ends, a multiple of 32 MiB.
    """

    def __init__(self, top: int = TOP) -> None:
        first = _Region(top - REGION_BYTES, REGION_BYTES)
        first.take(CONTEXT_BYTES)
        self._regions = {first.base: first}
        self._bases = [first.base]  # rising
        self._open = [first]  # rising: the regions that are not full
        self._gaps = [(0, first.base)]  # between the regions, falling: (from, to)

    def take(self, size_bytes: int) -> int:
        """The address of a new segment of ``size_bytes``."""
        size = round_up(size_bytes, PAGE_BYTES)
        for region in self._open:
            if region.free_bytes < size:
                continue
            address = region.take(size)
            if address is not None:
                if not region.free_bytes:
                    self._open.remove(region)
                return address
        region = self._add(size)
        address = region.take(size)
        assert address is not None
        if region.free_bytes:
            insort(self._open, region, key=_base)
        return address

    def give_back(self, address: int) -> None:
        """The segment at ``address`` was freed."""
        at = bisect_left(self._bases, address + 1) - 1
        region = self._regions[self._bases[at]]
        was_full = not region.free_bytes
        region.give_back(address)
        if region.segments:
            if was_full:
                insort(self._open, region, key=_base)
            return
        del self._regions[region.base], self._bases[at]
        if not was_full:
            self._open.remove(region)
        self._give_up(region)

    def _add(self, segment_bytes: int) -> _Region:
        size_bytes = round_up(segment_bytes, REGION_BYTES)
        alignment = LARGE_PAGE_BYTES if segment_bytes % LARGE_PAGE_BYTES == 0 else REGION_BYTES
        at, base = next(
            (at, base)
            for at, (low, high) in enumerate(self._gaps)
            if (base := (high - size_bytes) // alignment * alignment) >= low
        )
        low, high = self._gaps[at]
        left = ((base + size_bytes, high), (low, base))
        self._gaps[at : at + 1] = [gap for gap in left if gap[0] < gap[1]]
        region = _Region(base, size_bytes)
        self._regions[base] = region
        insort(self._bases, base)
        return region

    def _give_up(self, region: _Region) -> None:
        """Its addresses are a gap again, one with those beside it."""
        low, high = region.base, region.base + region.size_bytes
        at = next(index for index, gap in enumerate(self._gaps) if gap[0] < high)  # the first below
        if self._gaps[at][1] == low:
            low = self._gaps.pop(at)[0]
        if at and self._gaps[at - 1][0] == high:
            at -= 1
            high = self._gaps.pop(at)[1]
        self._gaps.insert(at, (low, high))


def _base(region: _Region) -> int:
    return region.base


class RisingPlacement:
    """Every segment above all that came before it: the other order, by which to tell what rests on neither.

    Addresses of the device and of the host are one space (unified virtual addressing), and a segment goes where the
    host, or a segment before it, has given back enough. :class:`DriverPlacement` knows of segments only.
    """

    def __init__(self) -> None:
        self._at = PAGE_BYTES

    def take(self, size_bytes: int) -> int:
        """The address of a new segment of ``size_bytes``."""
        address = self._at
        self._at += round_up(size_bytes, PAGE_BYTES)
        return address

    def give_back(self, address: int) -> None:
        """What is freed is not used again."""
