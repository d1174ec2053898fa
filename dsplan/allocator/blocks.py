"""Blocks, and the pools that keep the free ones in order.

A segment is what the driver hands out; blocks tile it from its first byte to its last. Free blocks that lie side by
side are always one block. Addresses matter where two free blocks of one size compete (``BlockComparatorSize``);
``placement.py`` says where segments come to lie.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

FREE, ALLOCATED, PENDING, UNMAPPED = range(4)
#: What a snapshot calls the states; unmapped blocks are address space, not memory, and are not in it.
STATE_NAMES = ("free", "allocated", "pending")

ADDRESS_BITS = 64  # a key in a pool is size << ADDRESS_BITS | address


class Block:
    """A stretch of one segment (``struct Block``); ``allocate`` returns one, ``free`` takes it.

    Attributes:
        size_bytes: the whole block: the request rounded up and, where it was not split off, the remainder.
        requested_bytes: what was asked for.
        stream: the stream whose pool it belongs to.
        address: where it begins, unique among live blocks.
    """

    __slots__ = (
        "address",
        "born_at_call",
        "next",
        "num_events",
        "pool",
        "prev",
        "requested_bytes",
        "size_bytes",
        "state",
        "stream",
        "stream_uses",
    )

    def __init__(self, pool: Pool | None, stream: int, address: int, size_bytes: int, state: int = FREE) -> None:
        self.pool = pool
        self.stream = stream
        self.address = address
        self.size_bytes = size_bytes
        self.requested_bytes = 0
        self.state = state
        self.prev: Block | None = None
        self.next: Block | None = None
        self.stream_uses: list[int] | None = None  # other streams that the block was recorded on
        self.num_events = 0  # events of those streams that have not completed
        self.born_at_call = 0  # the pool's call counter when the block became free (Block::gc_count)

    def __repr__(self) -> str:
        return f"Block(address={self.address:#x}, size_bytes={self.size_bytes}, stream={self.stream})"

    @property
    def is_split(self) -> bool:
        """Whether its segment holds further blocks (``Block::is_split``)."""
        return self.prev is not None or self.next is not None


class Pool:
    """The free blocks of one stream and one kind, small or large, in the order of best fit.

    torch keeps all streams in one set, ordered by stream, size and address (``BlockComparatorSize``); a lookup never
    leaves its stream, so one sorted list per stream finds the same block. ``unmapped`` is used by expandable
    segments only: stretches of address space without memory, by address.
    """

    __slots__ = ("blocks", "is_large", "keys", "least_remainder", "split_below", "stream", "unmapped")

    def __init__(self, stream: int, *, is_large: bool, least_remainder: int, split_below: int) -> None:
        self.stream = stream
        self.is_large = is_large
        self.least_remainder = least_remainder  # a smaller remainder stays with its block (should_split)
        self.split_below = split_below  # requests of at least this size are never split
        self.keys: list[int] = []
        self.blocks: list[Block] = []  # blocks[i] has keys[i]
        self.unmapped: list[Block] = []

    def insert(self, block: Block) -> None:
        key = block.size_bytes << ADDRESS_BITS | block.address
        at = bisect_left(self.keys, key)
        self.keys.insert(at, key)
        self.blocks.insert(at, block)

    def remove(self, block: Block) -> None:
        at = bisect_left(self.keys, block.size_bytes << ADDRESS_BITS | block.address)
        del self.keys[at]
        del self.blocks[at]

    def first_of(self, size_bytes: int) -> int:
        """Where the first block of at least ``size_bytes`` stands; the number of blocks when there is none."""
        return bisect_left(self.keys, size_bytes << ADDRESS_BITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentState:
    """One segment in a snapshot, as ``torch.cuda.memory._snapshot()`` shows it.

    Attributes:
        blocks: (offset, size, "allocated" | "pending" | "free", requested) of each block, in bytes; requested is 0
            for a free block. An expandable segment shows up once for every stretch that has memory behind it.
    """

    address: int
    total_bytes: int
    stream: int
    is_large: bool
    blocks: tuple[tuple[int, int, str, int], ...]


def describe(head: Block, *, is_large: bool) -> list[SegmentState]:
    """The mapped stretches of the segment that begins with ``head``."""
    found: list[SegmentState] = []
    stretch: list[Block] = []
    block: Block | None = head
    while block is not None or stretch:
        if block is not None and block.state != UNMAPPED:
            stretch.append(block)
        elif stretch:
            found.append(_stretch_state(stretch, is_large))
            stretch = []
        block = block.next if block is not None else None
    return found


def _stretch_state(stretch: list[Block], is_large: bool) -> SegmentState:
    first = stretch[0]
    return SegmentState(
        address=first.address,
        total_bytes=sum(block.size_bytes for block in stretch),
        stream=first.stream,
        is_large=is_large,
        blocks=tuple(
            (
                block.address - first.address,
                block.size_bytes,
                STATE_NAMES[block.state],
                block.requested_bytes if block.state != FREE else 0,
            )
            for block in stretch
        ),
    )
