"""Several ranks on one device: what a rank is told so that it takes the device for its own.

NCCL refuses two ranks on one device of a host ("Duplicate GPU detected", init.cc initTransportsRank), and tells hosts
apart by NCCL_HOSTID. Ranks 0 to D-1 of D devices are therefore one host to it, the next D another, as on a cluster of
nodes with D devices each; what goes between those nodes goes through sockets of this machine. What a rank allocates
is what it would allocate there. What the driver shows is of all ranks of a device together, and time is shared.
"""

from __future__ import annotations

from collections.abc import Mapping

LOOPBACK = "lo"


def shared_environment(rank: int, devices: int, base: Mapping[str, str]) -> dict[str, str]:
    """Variables of rank ``rank`` where all ranks share ``devices`` devices; ``base`` is not changed."""
    node, local = divmod(rank, devices)
    return {
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(devices),
        "LOCAL_SIZE": str(devices),
        "NCCL_HOSTID": f"dsplan-node-{node}",
        "NCCL_SOCKET_IFNAME": base.get("NCCL_SOCKET_IFNAME", LOOPBACK),
        "NCCL_IB_DISABLE": base.get("NCCL_IB_DISABLE", "1"),
    }
