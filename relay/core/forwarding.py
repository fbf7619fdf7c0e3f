"""Where a packet goes: the relay's forwarding decisions in both directions.

A Binding request always goes by its own hint, never by the flow; everything else follows the flow. Towards the client
no flow is needed: the SPP header says it all. Verdicts are in ``verdict.py``, flow rules in ``flow_table.py``.
"""

from collections import deque
from typing import NamedTuple, Protocol

from relay.core.admission import Admission, RefusedError
from relay.core.flow import Flow, FlowKey
from relay.core.flow_table import FlowTable
from relay.core.policy import AddressRules, RelayPolicy
from relay.core.rates import TokenBuckets
from relay.core.recall import Recall
from relay.core.verdict import FlowEvent, Verdict
from wire.address import Address
from wire.demux import PacketClass, classify
from wire.errors import WireError, WireFault
from wire.keys import KeyRing
from wire.spp import HEADER_BYTES, decode_header_untrusted
from wire.stun import StunMessage, parse_stun_untrusted
from wire.ufrag import ufrag_tag

# Above the largest UDP payload of a 1500-byte path by a margin; what is larger is no WebRTC packet.
MAX_DATAGRAM_BYTES = 2048

DTLS_ALERT = 21
# Sources, and ufrags, whose rates are remembered; about 0.3 KB each.
_RATED_NAMES = 32_768
# A call sends every 20 ms; a client that others had meanwhile was silent here for longer.
FRESH_S = 1.0

_STUN_VERDICTS = {
    WireFault.STUN_MALFORMED: Verdict.DROP_STUN_MALFORMED,
    WireFault.STUN_FINGERPRINT: Verdict.DROP_STUN_MALFORMED,
    WireFault.STUN_USERNAME: Verdict.DROP_STUN_USERNAME,
}


class Outcome(NamedTuple):
    """A packet's verdict and, if it is forwarded, where to: with an SPP header to a transceiver, without it to a client.

    ``vip_index`` tells the public socket to send from (index into ``RelayPolicy.vips``); it is -1 towards the fleet.
    """

    verdict: Verdict
    destination: Address | None = None
    vip_index: int = -1


class FlowNotice(NamedTuple):
    """A flow was made, became assured or changed its ufrag (``ended`` false), or is gone: for whoever mirrors flows.

    ``is_news``: the fleet's cache does not have it yet as it is.
    """

    flow: Flow
    ended: bool
    is_news: bool = False


class FlowStore(Protocol):
    """Flows of all workers of a relay: whoever gets a client's packet goes on from there."""

    def read(self, key: FlowKey) -> Flow | None:
        """A new copy of what is stored, or None. Fast, as it is called for packets."""
        ...


class RelayCore:
    """One worker's decisions. ``now`` is monotonic seconds; unix time comes with ``handle_timer``.

    A flow that the worker does not have, or that was silent for FRESH_S, is looked up in the ``store``, if there is one:
    another worker may have made, moved or ended it meanwhile. XDP notes there what it forwards, so whether a session is
    silent is always asked there: else indications, which reach a worker, would make an old copy look fresh.

    ``recall`` looks after packets of clients that are in neither, while the fleet's cache is asked; None: there is no cache.
    """

    def __init__(
        self,
        policy: RelayPolicy,
        keys: KeyRing,
        *,
        unix_s: float,
        store: FlowStore | None = None,
        has_cache: bool = False,
    ) -> None:
        self.flows = FlowTable(policy)
        self.events = [0] * len(FlowEvent)
        self.vips = [vip.address for vip in policy.vips]
        self._policy = policy
        self._rules = AddressRules(policy)
        self._admission = Admission(keys, policy, self._rules)
        self._source_rates = TokenBuckets(policy.unknown_per_s, policy.unknown_burst, _RATED_NAMES)
        self._ufrag_rates = TokenBuckets(policy.ufrag_per_s, policy.ufrag_burst, _RATED_NAMES)
        self._vip_index = {vip: index for index, vip in enumerate(self.vips)}
        self._unix_s = unix_s
        self._notices: deque[FlowNotice] = deque()
        self._store = store
        # XDP has limited what a source sends before it comes to a worker.
        self.recall = (
            Recall(policy, self._rules, self.events, limits_sources=store is None) if has_cache else None
        )

    @property
    def shares_flows(self) -> bool:
        """Whether other workers may make, move or end flows that are known here."""
        return self._store is not None

    def receive_from_client(self, datagram: bytes, client: Address, vip_index: int, now: float) -> Outcome:
        """Decide on a packet that came to the VIP of that index."""
        if not datagram:
            return Outcome(Verdict.DROP_MALFORMED)
        if len(datagram) > MAX_DATAGRAM_BYTES:
            return Outcome(Verdict.DROP_OVERSIZE)
        if not client.port:
            return Outcome(Verdict.DROP_SOURCE_PORT_ZERO)
        if not self._rules.may_be_client(client):
            return Outcome(Verdict.DROP_MARTIAN)
        key = FlowKey(client, self._policy.vips[vip_index].address)
        packet_class = classify(datagram)
        if packet_class is PacketClass.STUN:
            return self._receive_stun(datagram, key, now)
        if packet_class is PacketClass.DTLS or packet_class is PacketClass.RTP:
            return self._receive_media(datagram, key, now)
        return Outcome(Verdict.DROP_NOT_WEBRTC)

    def receive_from_fleet(self, datagram: bytes, source: Address, now: float) -> Outcome:
        """Decide on a packet that came to a fleet port."""
        if not self._rules.may_be_transceiver(source.host):
            return Outcome(Verdict.DROP_SPP_SOURCE)
        if len(datagram) > MAX_DATAGRAM_BYTES + HEADER_BYTES:
            return Outcome(Verdict.DROP_OVERSIZE)
        try:
            client, vip = decode_header_untrusted(datagram)
        except WireError:
            return Outcome(Verdict.DROP_SPP_MALFORMED)
        vip_index = self._vip_index.get(vip)
        if vip_index is None:
            return Outcome(Verdict.DROP_SPP_PROXY)
        if not client.port or client.family != vip.family or not self._rules.may_be_client(client):
            return Outcome(Verdict.DROP_SPP_CLIENT)
        payload = datagram[HEADER_BYTES:]
        if not payload:
            return Outcome(self._receive_confirmation(FlowKey(client, vip), source, now))
        flow = self._find(FlowKey(client, vip), now)
        if flow is None and self._rules.is_own_host(client.host):
            # On one machine clients share our address; its other services are no business of a transceiver.
            return Outcome(Verdict.DROP_SPP_CLIENT)
        if flow is not None and flow.transceiver == source:
            self._note_down(flow, payload, now)
        return Outcome(Verdict.FORWARD_CLIENT, client, vip_index)

    def handle_timer(self, now: float, unix_s: float) -> None:
        """Expire flows; call about once a second."""
        self._unix_s = unix_s
        self._note_ends(self.flows.expire(now), FlowEvent.FLOW_EXPIRED)
        if self.recall is not None:
            self.recall.handle_timer(now)

    def adopt(self, key: FlowKey, transceiver: Address, tag: str, now: float) -> bool:
        """Go on with an assured flow of a worker that ended. False if it is not ours to carry, or there is no room."""
        if key.vip not in self._vip_index or not self._rules.may_be_client(key.client):
            return False
        if not self._rules.may_be_transceiver(transceiver.host):
            return False
        if self.flows.get(key) is not None:
            return False
        flow = Flow(key, transceiver, tag, now, now, now)
        if not self.flows.assure(flow):
            return False
        self._release_held(flow, now)
        self.events[FlowEvent.FLOW_ADOPTED] += 1
        return True

    def next_notice(self) -> FlowNotice | None:
        """The next change of a flow, oldest first, or None. A flow that lives is told as it is now."""
        if not self._notices:
            return None
        notice = self._notices.popleft()
        if not notice.ended:
            current = self.flows.get(notice.flow.key)
            if current is not None and current.is_same_session(notice.flow):
                return notice._replace(flow=current)
        return notice

    def _receive_stun(self, datagram: bytes, key: FlowKey, now: float) -> Outcome:
        flow = self._find(key, now, anew=True)
        try:
            message = parse_stun_untrusted(datagram)
            if not message.is_binding_request:
                return self._receive_non_request(datagram, flow, now)
            server_ufrag, _ = message.ufrags_untrusted
        except WireError as error:
            return Outcome(_STUN_VERDICTS[error.fault])
        if flow is not None and flow.assured and flow.ufrag_tag == ufrag_tag(server_ufrag):
            # The transceiver checks the integrity; the kernel path does the same with a dead control plane.
            flow.ufrag_seen_at = now
            return self._forward_up(Verdict.FORWARD_STUN, datagram, flow, now)
        return self._receive_request(datagram, message, flow, key, now)

    def _receive_non_request(self, datagram: bytes, flow: Flow | None, now: float) -> Outcome:
        # Indications and responses have no USERNAME (RFC 8489 section 6.2), so only a flow can tell where they belong.
        if flow is None:
            return Outcome(Verdict.DROP_STUN_UNKNOWN_FLOW)
        return self._forward_up(Verdict.FORWARD_FLOW, datagram, flow, now)

    def _receive_request(
        self, datagram: bytes, message: StunMessage, known: Flow | None, key: FlowKey, now: float
    ) -> Outcome:
        server_ufrag, _ = message.ufrags_untrusted
        tag = ufrag_tag(server_ufrag)
        is_new = known is None or known.ufrag_tag != tag
        if is_new and not self._may_ask(key, known, tag, now):
            return Outcome(Verdict.DROP_RATE_LIMITED)
        try:
            hint = self._admission.admit(datagram, message, server_ufrag, self._unix_s)
        except RefusedError as refused:
            return Outcome(refused.verdict)
        if is_new:
            # Not before: who has seen a ufrag, but not its password, shall not use its tokens up.
            self._ufrag_rates.take(tag, now)
        flow = self._flow_for_request(known, key, hint.transceiver, tag, now)
        if flow is None:
            return Outcome(Verdict.FORWARD_STUN, hint.transceiver)
        return self._forward_up(Verdict.FORWARD_STUN, datagram, flow, now)

    def _may_ask(self, key: FlowKey, known: Flow | None, tag: str, now: float) -> bool:
        """Whether source and ufrag have asked for few enough flows to ask for another. With XDP, it limits sources."""
        if known is None and self._store is None:
            source = self._policy.source_prefix(key.client.host)
            if not self._source_rates.take(source, now):
                return False
        return self._ufrag_rates.has(tag, now)

    def _flow_for_request(
        self, flow: Flow | None, key: FlowKey, transceiver: Address, tag: str, now: float
    ) -> Flow | None:
        """The flow that an admitted request belongs to; None if another session's assured flow holds the address."""
        if flow is not None and flow.ufrag_tag == tag:
            flow.ufrag_seen_at = now
            return flow
        if flow is not None and flow.assured:
            if flow.transceiver == transceiver:
                # An ICE restart: the packets go to the same place under either ufrag.
                if now - flow.ufrag_seen_at >= self._policy.contest_s:
                    flow.ufrag_tag, flow.ufrag_seen_at = tag, now
                    self._notices.append(FlowNotice(flow, ended=False, is_news=True))
                return flow
            # What the transceiver sends, no client can forge: while it talks, the session lives.
            last_sign = max(flow.ufrag_seen_at, flow.down_seen_at)
            if not flow.released and now - last_sign < self._policy.contest_s:
                self.events[FlowEvent.FLOW_CONTESTED] += 1
                return None
            self.events[FlowEvent.FLOW_MOVED] += 1
            self._notices.append(FlowNotice(flow, ended=True))
        self.events[FlowEvent.FLOW_CREATED] += 1
        self._note_ends(self.flows.create(key, transceiver, tag, now), FlowEvent.FLOW_EVICTED)
        created = self.flows.get(key)
        assert created is not None  # it has just been made
        self._notices.append(FlowNotice(created, ended=False))
        self._release_held(created, now)
        return created

    def _find(self, key: FlowKey, now: float, *, anew: bool = False) -> Flow | None:
        """The flow of a key, here or in the store. ``anew``: with what XDP has seen of it just now."""
        own = self.flows.get(key)
        if self._store is None or (own is not None and now - own.last_seen < FRESH_S and not anew):
            return own
        shared = self._store.read(key)
        if own is not None:
            if shared is not None and own.is_same_session(shared):
                own.catch_up(shared)
                self.flows.save(own)
                return own
            if not own.stored and (shared is None or shared.last_seen <= own.last_seen):
                return own
            self.flows.remove(key)
        # What stands there was written by another worker: believed as far as a hint would be.
        if shared is None or not self._rules.may_be_transceiver(shared.transceiver.host):
            return None
        if self.flows.is_over(shared, now):
            return None
        evicted = self.flows.insert(shared)
        if evicted is None:
            # No room here: then every packet asks the store, and has it told that the flow lives.
            self._notices.append(FlowNotice(shared, ended=False))
        else:
            self._note_ends(evicted, FlowEvent.FLOW_EVICTED)
        self._release_held(shared, now)
        return shared

    def _note_ends(self, flows: list[Flow], event: FlowEvent) -> None:
        """Count and tell of flows that are gone, but for those that another worker carries on."""
        for flow in flows:
            shared = self._store.read(flow.key) if self._store else None
            if shared is not None and (shared.last_seen > flow.last_seen or not flow.is_same_session(shared)):
                continue
            self.events[event] += 1
            self._notices.append(FlowNotice(flow, ended=True))

    def _receive_media(self, datagram: bytes, key: FlowKey, now: float) -> Outcome:
        flow = self._find(key, now)
        if flow is None:
            return Outcome(
                Verdict.DROP_UNKNOWN_FLOW if self.recall is None else self.recall.hold(key, datagram, now)
            )
        flow.media_up = True
        outcome = self._forward_up(Verdict.FORWARD_FLOW, datagram, flow, now)
        self._assure_if_due(flow)
        return outcome

    def _receive_confirmation(self, key: FlowKey, source: Address, now: float) -> Verdict:
        """Decide on an SPP header with nothing behind it: a transceiver's word that it has a client's session."""
        if self.recall is None:
            return Verdict.DROP_SPP_MALFORMED
        flow = self._find(key, now)
        if flow is not None:
            # It was asked twice, and answers again.
            return Verdict.CONFIRM_FLOW if flow.transceiver == source else Verdict.DROP_SPP_MALFORMED
        confirmed = self.recall.confirm(key, source)
        if confirmed is None:
            return Verdict.DROP_SPP_MALFORMED
        record, packets = confirmed
        self._count_up(self._recalled(key, source, record.ufrag_tag, now), packets, now)
        return Verdict.CONFIRM_FLOW

    def _recalled(self, key: FlowKey, transceiver: Address, tag: str, now: float) -> Flow:
        """A flow that the cache had: assured, or, where there is no room, provisional, so that the call goes on all the same.

        It is not trusted to live before its transceiver talks: a check of another session takes its place at once.
        """
        flow = Flow(key, transceiver, tag, max(0.0, now - self._policy.contest_s), now, now)
        self.events[FlowEvent.FLOW_RECALLED] += 1
        if not self.flows.assure(flow):
            flow.refused = True
            self.events[FlowEvent.FLOW_REFUSED] += 1
            self._note_ends(self.flows.insert(flow) or [], FlowEvent.FLOW_EVICTED)
        self._notices.append(FlowNotice(flow, ended=False))
        return flow

    def _release_held(self, flow: Flow, now: float) -> None:
        """Let packets go the way of a flow that was made while they were held."""
        if self.recall is not None:
            self._count_up(flow, self.recall.release(flow.key, flow.transceiver), now)

    def _count_up(self, flow: Flow, packets: list[bytes], now: float) -> None:
        for datagram in packets:
            flow.media_up = True
            self._forward_up(Verdict.FORWARD_FLOW, datagram, flow, now)

    def _forward_up(self, verdict: Verdict, datagram: bytes, flow: Flow, now: float) -> Outcome:
        flow.packets_up += 1
        flow.bytes_up += len(datagram)
        self.flows.touch(flow, now)
        return Outcome(verdict, flow.transceiver)

    def _note_down(self, flow: Flow, payload: bytes, now: float) -> None:
        flow.down_seen_at = now
        # https://www.rfc-editor.org/rfc/rfc5246#section-7.2.1: an alert in an established call is its goodbye
        flow.released = payload[0] == DTLS_ALERT
        flow.packets_down += 1
        flow.bytes_down += len(payload)
        is_media = classify(payload) is not PacketClass.STUN
        flow.media_down |= is_media
        self.flows.touch(flow, now)
        if is_media:
            self._assure_if_due(flow)

    def _assure_if_due(self, flow: Flow) -> None:
        if flow.assured or not (flow.media_up and flow.media_down):
            return
        if self.flows.assure(flow):
            self.events[FlowEvent.FLOW_ASSURED] += 1
            self._notices.append(FlowNotice(flow, ended=False, is_news=True))
        elif not flow.refused:
            flow.refused = True
            self.events[FlowEvent.FLOW_REFUSED] += 1
