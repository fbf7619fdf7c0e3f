"""Where the kernels and network cards of the hosts say that they lost packets."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.vm.ssh import Host

# One process each, as a host may be emulated: the kernel's counters of each interface, the driver's own, IP's and UDP's, and
# those of the CPUs. Then what the kernel had to say since a moment of its clock.
_COUNTERS = r"""
cd /sys/class/net
grep -H . */statistics/*
for link in *; do ethtool -S "$link" 2>/dev/null | sed "s/^ */$link /"; done
nstat --noupdate --ignore --zeros 2>/dev/null
grep -n . /proc/net/softnet_stat
date +%s
"""
_KERNEL_LOG = 'journalctl --dmesg --quiet --no-pager --output=short --since "@$0" | tail -n 20'
_DRIVERS = " driver's "
_OF_INTERFACE = re.compile(r"([^\s/]+)/statistics/(\w+):(\d+)")
_OF_DRIVER = re.compile(r"(\S+) (.+): (\d+)")
_OF_PROTOCOL = re.compile(r"((?:Ip|Udp)\w+) +(\d+) .*")
# processed, dropped
_OF_CPU = re.compile(r"(\d+):[0-9a-f]{8} ([0-9a-f]{8})( .*)?")
_OF_CLOCK = re.compile(r"\d+")
_OF_LOSSES = re.compile(r"drop|discard|err(?!upt)|miss|no_buf|no_dma|no_?route|timeout|fail|full|stop", re.I)


@dataclass(frozen=True)
class Losses:
    """Counters of one host whose name tells of losses, and the host's clock in seconds."""

    counts: dict[str, int]
    at: str

    def grown(self, before: "Losses") -> list[str]:
        """Those that have grown, each with by how much; a driver's not where the kernel's of that name says the same."""
        more = {name: count - before.counts.get(name, 0) for name, count in self.counts.items()}
        return [
            f"{name} {count}"
            for name, count in more.items()
            if count > 0 and (_DRIVERS not in name or more.get(name.replace(_DRIVERS, " ")) != count)
        ]


def parse_losses(said: str) -> Losses:
    """Of what ``_COUNTERS`` printed; lines of another form are no counters."""
    counts: dict[str, int] = {}
    at = "0"
    for line in said.splitlines():
        if match := _OF_INTERFACE.fullmatch(line):
            counts[f"{match[1]} {match[2]}"] = int(match[3])
        elif match := _OF_CPU.fullmatch(line):
            counts[f"CPU {int(match[1]) - 1} dropped"] = int(match[2], 16)
        elif match := _OF_DRIVER.fullmatch(line):
            counts[f"{match[1]}{_DRIVERS}{match[2]}"] = int(match[3])
        elif match := _OF_PROTOCOL.fullmatch(line):
            counts[match[1]] = int(match[2])
        elif _OF_CLOCK.fullmatch(line):
            at = line
    return Losses({name: count for name, count in counts.items() if _OF_LOSSES.search(name)}, at)


class LossWatch:
    """What hosts count from its making on."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = hosts
        self._before = self._read()

    def told(self) -> list[str]:
        """A line for each host: what has grown, and what its kernel has logged meanwhile."""
        lines = []
        for host, before, now in zip(self._hosts, self._before, self._read(), strict=True):
            logged = host.run("sh", "-c", _KERNEL_LOG, before.at, root=True, fails=True).splitlines()
            lines.append(f"{host.target}: {', '.join([*now.grown(before), *logged]) or 'nothing'}")
        return lines

    def _read(self) -> list[Losses]:
        with ThreadPoolExecutor() as pool:
            said = pool.map(lambda host: host.run("sh", "-c", _COUNTERS, root=True, fails=True), self._hosts)
            return [parse_losses(text) for text in said]
