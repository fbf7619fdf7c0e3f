"""Two workers over one store decide as one worker would, whichever of them a client's packets come to.

The store is as fresh as it can be: written after each packet. A client comes to another worker only after it was
silent for longer than a worker's own copy is believed without a look (_FRESH_S), as a move is rarely within a burst.
"""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.relay.harness import Relay
from tests.relay.network import (
    CALL,
    CLIENT_HELLO,
    CLIENT_V4,
    DTLS_ALERT,
    OTHER_CALL,
    OTHER_CLIENT_V4,
    RESTARTED_CALL,
    RTP,
    SERVER_HELLO,
    answer,
    check,
)
from tests.relay.test_shared_flows import Packet, Workers
from wire.address import Address

_FRESH_S = 1.0
CLIENTS = (CLIENT_V4, OTHER_CLIENT_V4)
CALLS = {"call": CALL, "other": OTHER_CALL, "restarted": RESTARTED_CALL}
CHECKS = {name: check(call) for name, call in CALLS.items()}
UP = {"up dtls": CLIENT_HELLO, "up rtp": RTP}
DOWN = {"down dtls": SERVER_HELLO, "down rtp": RTP, "down alert": DTLS_ALERT, "down stun": answer(CALL)}

STEPS = st.tuples(
    st.sampled_from([0.02, 0.5, 1.5, 3.0, 6.0, 9.5, 30.0, 61.0]),
    st.sampled_from(CLIENTS),
    st.sampled_from([0, 1]),
    st.one_of(
        st.sampled_from(["connect"]).flatmap(
            lambda kind: st.tuples(st.just(kind), st.sampled_from(list(CALLS)))
        ),
        st.tuples(st.just("check"), st.sampled_from(list(CALLS))),
        st.tuples(st.sampled_from([*UP, *DOWN]), st.sampled_from(list(CALLS))),
    ),
)


def packets_of(kind: str, call: str, client: Address) -> list[Packet]:
    home = CALLS[call].transceiver
    if kind == "check":
        return [lambda relay: relay.client_sends(CHECKS[call], client)]
    if kind == "connect":
        return [
            lambda relay: relay.client_sends(CHECKS[call], client),
            lambda relay: relay.client_sends(CLIENT_HELLO, client),
            lambda relay: relay.transceiver_sends(SERVER_HELLO, home, client),
        ]
    if kind in UP:
        return [lambda relay: relay.client_sends(UP[kind], client)]
    return [lambda relay: relay.transceiver_sends(DOWN[kind], home, client)]


@settings(deadline=None, max_examples=600)
@given(st.lists(STEPS, max_size=25))
@example(
    [
        (0.02, OTHER_CLIENT_V4, 0, ("check", "restarted")),
        (0.02, OTHER_CLIENT_V4, 0, ("down dtls", "call")),
        (0.02, OTHER_CLIENT_V4, 0, ("check", "call")),
        (0.02, OTHER_CLIENT_V4, 0, ("up dtls", "call")),
    ]
)
def test_two_workers_decide_as_one(steps: list[tuple[float, Address, int, tuple[str, str]]]) -> None:
    alone, workers = Relay(), Workers()
    last_at: dict[Address, float] = {}
    steered: dict[Address, int] = {}
    for seconds, client, wanted, (kind, call) in steps:
        alone.let_pass(seconds)
        workers.let_pass(seconds)
        workers.settle()
        if alone.now - last_at.get(client, float("-inf")) > _FRESH_S:
            steered[client] = wanted
        worker = (workers.a, workers.b)[steered[client]]
        for packet in packets_of(kind, call, client):
            expected, told = packet(alone), packet(worker)
            assert told == expected
            workers.settle()
        last_at[client] = alone.now
    made = {f.key: (f.transceiver, f.ufrag_tag, f.assured) for f in alone.core.flows}
    stored = {f.key: (f.transceiver, f.ufrag_tag, f.assured) for f in workers.store.flows.values()}
    assert stored == made
