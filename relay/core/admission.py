"""Which Binding requests may make a flow: cryptographic, without any session state or lookup.

Steps, cheapest refusal first: unseal the ufrag, compare cluster, network and age, then check MESSAGE-INTEGRITY with the
ice-pwd that follows from the ufrag. A captured request passes again (so what it makes is only provisional).
"""

from collections import OrderedDict

from relay.core.policy import AddressRules, RelayPolicy
from relay.core.verdict import Verdict
from wire.errors import WireError, WireFault
from wire.keys import KeyRing
from wire.stun import StunMessage, verify_integrity
from wire.ufrag import RouteHint, open_session_untrusted

_VERDICTS = {
    WireFault.UFRAG_FORGED: Verdict.DROP_UFRAG_FORGED,
    WireFault.UFRAG_UNKNOWN_KEY: Verdict.DROP_UFRAG_UNKNOWN_KEY,
}
# About 0.6 KB each, for checks that are sent again; those of an assured flow's own ufrag need not be opened.
_CACHED_UFRAGS = 8_192


class RefusedError(Exception):
    """A request that makes no flow; ``verdict`` says why."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.label)
        self.verdict = verdict


class Admission:
    """Checks requests against the fleet's keys; remembers ufrags that opened, up to a bound."""

    def __init__(self, keys: KeyRing, policy: RelayPolicy, rules: AddressRules) -> None:
        self._keys = keys
        self._policy = policy
        self._rules = rules
        self._opened: OrderedDict[str, tuple[RouteHint, bytes]] = OrderedDict()

    def admit(self, datagram: bytes, message: StunMessage, server_ufrag: str, unix_s: float) -> RouteHint:
        """The hint of a request that is genuine. Raises RefusedError."""
        hint, ice_pwd = self._open(server_ufrag)
        if hint.cluster_id != self._policy.cluster_id:
            raise RefusedError(Verdict.DROP_UFRAG_CLUSTER)
        if not hint.transceiver.port or not self._rules.may_be_transceiver(hint.transceiver.host):
            raise RefusedError(Verdict.DROP_UFRAG_NETWORK)
        if not -self._policy.clock_skew_s <= unix_s - hint.issued_at <= self._policy.max_session_s:
            raise RefusedError(Verdict.DROP_UFRAG_EXPIRED)
        if not verify_integrity(datagram, message, ice_pwd):
            raise RefusedError(Verdict.DROP_STUN_INTEGRITY)
        return hint

    def _open(self, server_ufrag: str) -> tuple[RouteHint, bytes]:
        opened = self._opened.get(server_ufrag)
        if opened is not None:
            self._opened.move_to_end(server_ufrag)
            return opened
        try:
            hint, ice_pwd = open_session_untrusted(self._keys, server_ufrag)
        except WireError as error:
            raise RefusedError(_VERDICTS[error.fault]) from None
        if len(self._opened) >= _CACHED_UFRAGS:
            self._opened.popitem(last=False)
        self._opened[server_ufrag] = opened = hint, ice_pwd.encode()
        return opened
