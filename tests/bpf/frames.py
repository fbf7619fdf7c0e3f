"""Ethernet frames as a NIC would deliver them, and what the XDP program makes of one."""

import struct

from relay.core.verdict import Verdict
from relay.dataplane.bpf.programs import RelayPrograms
from wire.address import Address

_MACS = bytes.fromhex("020000000001 020000000002")
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_XDP_DROP, _XDP_PASS = 1, 2


def udp_frame(
    source: Address,
    destination: Address,
    payload: bytes,
    *,
    vlans: tuple[int, ...] = (),
    fragment: int = 0,
    udp_length: int | None = None,
    ip_options: bytes = b"",
) -> bytes:
    """One UDP datagram; ``fragment`` is the IPv4 flags and offset field, ``udp_length`` overrides the true one."""
    udp = struct.pack("!HHHH", source.port, destination.port, udp_length or 8 + len(payload), 0) + payload
    tags = b"".join(struct.pack("!HH", 0x8100, vlan) for vlan in vlans)
    ethernet = _MACS + tags + struct.pack("!H", _ETHERTYPES[destination.family])
    if destination.family == 6:
        ip = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + source.mapped + destination.host
    else:
        words = 5 + len(ip_options) // 4
        ip = struct.pack("!BBHHHBBH", 4 << 4 | words, 0, words * 4 + len(udp), 1, fragment, 64, 17, 0)
        ip += source.host + destination.host + ip_options
    return ethernet + ip + udp


def judge(programs: RelayPrograms, frame: bytes) -> Verdict | None:
    """The verdict that one frame was counted under; None if it was the kernel's own business."""
    before = programs.counts()
    action, left = programs.run(frame)
    assert left == frame
    counted = [verdict for verdict, count in programs.counts().items() if count != before[verdict]]
    assert action == (_XDP_PASS if counted in ([], [Verdict.HAND_UP]) else _XDP_DROP)
    assert len(counted) <= 1
    return counted[0] if counted else None
