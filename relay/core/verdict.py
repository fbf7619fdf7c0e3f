"""What can happen to a packet, and what each outcome means to an operator.

The number is the index of the counter, the lower-case name is the metric label; ``bpf/include/verdict.h`` is the
same list for C and a test compares the two.
"""

from enum import IntEnum
from typing import Final


class Verdict(IntEnum):
    """A packet's one outcome."""

    FORWARD_STUN = 0
    FORWARD_FLOW = 1
    FORWARD_CLIENT = 2
    HAND_UP = 3
    DROP_MALFORMED = 4
    DROP_OVERSIZE = 5
    DROP_SOURCE_PORT_ZERO = 6
    DROP_MARTIAN = 7
    DROP_NOT_WEBRTC = 8
    DROP_STUN_MALFORMED = 9
    DROP_STUN_USERNAME = 10
    DROP_STUN_INTEGRITY = 11
    DROP_STUN_UNKNOWN_FLOW = 12
    DROP_UFRAG_FORGED = 13
    DROP_UFRAG_UNKNOWN_KEY = 14
    DROP_UFRAG_EXPIRED = 15
    DROP_UFRAG_CLUSTER = 16
    DROP_UFRAG_NETWORK = 17
    DROP_UNKNOWN_FLOW = 18
    DROP_SPP_SOURCE = 19
    DROP_SPP_MALFORMED = 20
    DROP_SPP_PROXY = 21
    DROP_SPP_CLIENT = 22
    DROP_SEND_FAILED = 23
    DROP_FRAGMENT = 24
    DROP_RATE_LIMITED = 25
    DROP_NO_WORKER = 26
    DROP_OVERLOAD = 27
    DROP_SEND_FULL = 28
    DROP_SEND_OVERSIZE = 29
    HOLD = 30
    DROP_HOLD_FULL = 31
    CONFIRM_FLOW = 32

    @property
    def label(self) -> str:
        """The name in metrics, tables and JSON."""
        return self.name.lower()

    @property
    def is_drop(self) -> bool:
        """Whether the packet went nowhere."""
        return self.name.startswith("DROP_")


MEANINGS: Final = {
    Verdict.FORWARD_STUN: "Binding request that passed admission, sent to the transceiver its ufrag names",
    Verdict.FORWARD_FLOW: "packet of a known flow, sent to its transceiver",
    Verdict.FORWARD_CLIENT: "packet of a transceiver, sent to its client from the VIP",
    Verdict.HAND_UP: "packet that XDP leaves to a worker, which counts its own verdict",
    Verdict.DROP_MALFORMED: "empty datagram, or lengths that contradict each other: a port scan or a broken client",
    Verdict.DROP_OVERSIZE: "datagram larger than any WebRTC packet: not one of ours, or a path without an MTU limit",
    Verdict.DROP_SOURCE_PORT_ZERO: "source port 0 cannot be answered: forged",
    Verdict.DROP_MARTIAN: "source address that no client can have (ours, the fleet's, multicast, reserved): forged",
    Verdict.DROP_NOT_WEBRTC: "first byte is not STUN, DTLS or RTP (RFC 7983): a scan, or another protocol on this port",
    Verdict.DROP_STUN_MALFORMED: "looks like STUN but cookie, length, attributes or fingerprint do not fit",
    Verdict.DROP_STUN_USERNAME: "Binding request without a usable USERNAME: a plain STUN client, not ICE",
    Verdict.DROP_STUN_INTEGRITY: "ufrag is ours but MESSAGE-INTEGRITY does not fit: forged, or keys differ in the fleet",
    Verdict.DROP_STUN_UNKNOWN_FLOW: "STUN that is no Binding request, from a client without a flow",
    Verdict.DROP_UFRAG_FORGED: "ufrag does not open: altered, of another fleet, or keys.json differs between hosts",
    Verdict.DROP_UFRAG_UNKNOWN_KEY: "ufrag names a key that this relay lacks: rotate keys to relays before transceivers",
    Verdict.DROP_UFRAG_EXPIRED: "ufrag is older than max_session_s, or from the future: a replay, or clocks differ",
    Verdict.DROP_UFRAG_CLUSTER: "ufrag names another cluster: geo-steering sent the client here",
    Verdict.DROP_UFRAG_NETWORK: "ufrag names an address outside transceiver_networks: widen them, or a key has leaked",
    Verdict.DROP_UNKNOWN_FLOW: "DTLS or RTP without a flow, here or in the cache: the tail of an ended call, or a relay restarted",
    Verdict.DROP_SPP_SOURCE: "fleet packet from outside transceiver_networks: forged, or a transceiver not configured here",
    Verdict.DROP_SPP_MALFORMED: "fleet packet without an SPP header, or one with nothing behind it that nobody asked for",
    Verdict.DROP_SPP_PROXY: "fleet packet for a VIP that this relay does not serve",
    Verdict.DROP_SPP_CLIENT: "fleet packet to an address that no client can have: this relay is no reflector",
    Verdict.DROP_SEND_FAILED: "the kernel refused the packet: no route, or no fleet socket of the transceiver's family",
    Verdict.DROP_FRAGMENT: "first fragment of a datagram (XDP only): no WebRTC packet is fragmented",
    Verdict.DROP_RATE_LIMITED: "packet of no known flow, from a source or with a ufrag that sent too many of them: a flood",
    Verdict.DROP_NO_WORKER: "no worker has beaten its heart for a second (XDP only): it would answer with ICMP errors",
    Verdict.DROP_OVERLOAD: "packet of no known flow, left out as a worker was behind: a flood, or too few workers",
    Verdict.DROP_SEND_FULL: "no room in the queue of the socket or the interface (EAGAIN, ENOBUFS): the link is full",
    Verdict.DROP_SEND_OVERSIZE: "larger than the path to its destination takes (EMSGSIZE)",
    Verdict.HOLD: "DTLS or RTP of an unknown client, held while the cache is asked; it has another verdict when it goes on",
    Verdict.DROP_HOLD_FULL: "DTLS or RTP of an unknown client, and too much is held or asked already: a flood, or a slow cache",
    Verdict.CONFIRM_FLOW: "bare SPP header: a transceiver's word that it has the session of a client found in the cache",
}


class FlowEvent(IntEnum):
    """What happened to flows; counted beside the verdicts."""

    FLOW_CREATED = 0
    FLOW_ASSURED = 1
    FLOW_EXPIRED = 2
    FLOW_EVICTED = 3
    FLOW_CONTESTED = 4
    FLOW_MOVED = 5
    FLOW_REFUSED = 6
    FLOW_ADOPTED = 7
    TRANSCEIVER_UNREACHABLE = 8
    FLOW_RECALLED = 9
    RECALL_MISSED = 10
    RECALL_UNCONFIRMED = 11
    RECALL_UNAVAILABLE = 12
    FLOW_UNTOLD = 13

    @property
    def label(self) -> str:
        """The name in metrics, tables and JSON."""
        return self.name.lower()


EVENT_MEANINGS: Final = {
    FlowEvent.FLOW_CREATED: "provisional flows made by an admitted Binding request",
    FlowEvent.FLOW_ASSURED: "flows that carried DTLS or RTP both ways",
    FlowEvent.FLOW_EXPIRED: "flows that fell silent and were removed",
    FlowEvent.FLOW_EVICTED: "provisional flows pushed out by newer ones at a cap (table, source prefix or ufrag): a flood",
    FlowEvent.FLOW_CONTESTED: "requests with another transceiver's ufrag from the address of a live assured flow: a spoofer",
    FlowEvent.FLOW_MOVED: "assured flows given up to another ufrag, as their session had said goodbye or was silent on both sides",
    FlowEvent.FLOW_REFUSED: "flows that stayed provisional because the assured table is full: raise max_assured_flows",
    FlowEvent.FLOW_ADOPTED: "assured flows taken over from a worker that ended",
    FlowEvent.TRANSCEIVER_UNREACHABLE: "ICMP errors for packets to transceivers: one has ended, or its host is not reached",
    FlowEvent.FLOW_RECALLED: "flows taken up from the cache, as their transceiver confirmed them",
    FlowEvent.RECALL_MISSED: "clients that the cache does not know, or whose entry is not to be believed",
    FlowEvent.RECALL_UNCONFIRMED: "clients whose transceiver in the cache did not say that it has their session: an old entry",
    FlowEvent.RECALL_UNAVAILABLE: "clients that the cache could not be asked for, or not in time",
    FlowEvent.FLOW_UNTOLD: "assured flows that the cache could not be told of at once; the next round tells them again",
}
