"""What crosses the channel from the supervisor to a worker arrives as it was."""

from dataclasses import fields, replace
from ipaddress import ip_network

import pytest

from relay.core.policy import RelayPolicy
from relay.settings import WorkerSettings
from tests.relay.network import KEYS, POLICY
from wire.admin import decode_message_untrusted, encode_message

EVERYTHING_ELSE = RelayPolicy(
    cluster_id=65_535,
    vips=POLICY.vips,
    transceiver_networks=(ip_network("10.1.0.0/16"), ip_network("fd00::/8"), ip_network("192.0.2.1/32")),
    own_sockets=POLICY.own_sockets,
    max_session_s=61,
    clock_skew_s=62,
    provisional_s=6.3,
    assured_s=6.4,
    contest_s=6.5,
    max_assured_flows=66,
    max_provisional_flows=67,
    max_provisional_per_prefix=68,
    max_addresses_per_ufrag=69,
    unknown_per_s=70,
    unknown_burst=71,
    ufrag_per_s=75,
    ufrag_burst=76,
    heartbeat_timeout_s=7.2,
    ipv4_source_bits=23,
    ipv6_source_bits=74,
)
BARE = RelayPolicy(cluster_id=0, vips=(), transceiver_networks=())


def crossed(settings: WorkerSettings) -> WorkerSettings:
    return WorkerSettings.from_message(decode_message_untrusted(encode_message(settings.to_message())))


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(EVERYTHING_ELSE, id="nothing left at its default"),
        pytest.param(POLICY, id="defaults"),
        pytest.param(BARE, id="empty"),
    ],
)
def test_settings_cross_the_channel(policy: RelayPolicy) -> None:
    settings = WorkerSettings(
        policy=policy,
        keys=KEYS,
        slot=63,
        public_fds=(9, 3, 7),
        check_fds=(6, 2, 8),
        fleet_fds=(5, 4),
        counters_fd=11,
        counters_page=12,
        kernel_maps={"flows": 13, "heartbeat": 14},
        gather_us=14,
        busy_poll_us=15,
        line_fd=16,
        refresh_s=17.5,
    )
    arrived = crossed(settings)
    assert arrived.policy == policy
    assert hash(arrived.policy) == hash(policy)  # tuples and sets again, not lists
    assert arrived.keys.to_json() == KEYS.to_json()
    assert replace(arrived, keys=KEYS) == settings


def test_the_settings_above_leave_nothing_at_its_default() -> None:
    defaults = {field.name: field.default for field in fields(RelayPolicy)}
    assert all(getattr(EVERYTHING_ELSE, name) != default for name, default in defaults.items())
