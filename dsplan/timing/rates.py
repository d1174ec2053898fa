"""Peak rates and links of the catalogued devices (``catalog/rates.json``, each with its source)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from dsplan.errors import InputError
from dsplan.hardware import Accelerator
from dsplan.timing.nominal import catalogue, nominal
from dsplan.timing.profile import Profile
from dsplan.timing.profiles import DATA_SHEETS, shipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the vendor says of one device.

    Attributes:
        half_flops: dense matrix products in bf16 or fp16, floating-point operations per second.
        single_flops: in fp32 without TF32, which torch leaves off.
        memory_bytes_per_s: of the device's memory.
        host_link_bytes_per_s: to the host, one way.
        within_bytes_per_s: to the other devices of the node, one way.
        nvlink: whether that link is one of the vendor's own, or the host's.
        between_bytes_per_s: to other nodes, one way, of one device.
    """

    name: str
    half_flops: float
    single_flops: float
    memory_bytes_per_s: float
    host_link_bytes_per_s: float
    within_bytes_per_s: float
    nvlink: bool
    between_bytes_per_s: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """The links between devices as far as collectives use them, bytes per second one way of one device."""

    within_bytes_per_s: float
    between_bytes_per_s: float
    nvlink: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What step times are computed with: a profile that stands for the device, its links, its peak rates.

    ``host_threads``: OMP_NUM_THREADS of each rank; None: the ranks of a node share all its cores.
    """

    profile: Profile
    links: Links
    rates: Rates | None
    host_threads: int | None = None

    @property
    def measured(self) -> bool:
        """Whether the profile was measured, and is not made of data sheets."""
        return self.profile.measured

    def peak_flops(self, precision: str) -> float | None:
        """Of the data sheet; None for a device without one."""
        if self.rates is None:
            return None
        return self.rates.single_flops if precision == "fp32" else self.rates.half_flops


@cache
def catalogued() -> dict[str, Rates]:
    """The rates by the catalogue's key."""
    return {entry["name"]: Rates(**entry) for entry in catalogue()["rates"]}


def machine(accelerator: Accelerator, profile: Profile | None = None) -> Machine:
    """What times on ``accelerator`` are computed with.

    Args:
        accelerator: the device that runs.
        profile: measured on such a device; None takes the one that ships (:mod:`dsplan.timing.profiles`), else the
            nominal one (:mod:`dsplan.timing.nominal`). DATA_SHEETS takes the nominal one in any case.

    Raises:
        InputError: neither a profile nor a data sheet is known for the device.
    """
    rates = catalogued().get(accelerator.name)
    sheets = profile is DATA_SHEETS
    if sheets:
        profile = None
    if rates is None:
        if profile is None:
            known = ", ".join(catalogued())
            raise InputError(
                f"step time: no rates are known of {accelerator.name}; give a profile (--profile; dsplan verify "
                f"--calibrate measures one) or one of {known}"
            )
        links = Links(within_bytes_per_s=1e9, between_bytes_per_s=1e9, nvlink=False)
        return Machine(profile=profile, links=links, rates=None)
    found = profile or (None if sheets else shipped(rates.name)) or nominal(rates.name)
    return Machine(profile=found, links=_links(rates), rates=rates)


def _links(rates: Rates) -> Links:
    achieved = catalogue()["achieved"]["link"]["value"]
    return Links(
        within_bytes_per_s=achieved * rates.within_bytes_per_s,
        between_bytes_per_s=achieved * rates.between_bytes_per_s,
        nvlink=rates.nvlink,
    )
