"""``relayctl cache``: what the flow cache in Redis has of a client, and how it fares."""

from typing import Any

import click

from cli.admin import ask
from cli.filters import parse_client
from cli.main import cli, json_option, state_dir_option
from cli.render import count_of, human_bytes, human_duration, print_json, print_table
from cli.status import describe_redis
from host.errors import ConfigError
from host.state_dir import StateDir
from wire.address import Address

# The agent asks Redis, and gives up by itself before.
_TIMEOUT_S = 15.0
# In this order; what a later agent counts beside comes after, without a meaning.
_MEANINGS = {
    "told": "flows that relays told of: new ones, and those that live on",
    "written": "of these, written to Redis",
    "unwritten": "of these, left out: Redis was away, full or read-only; told again when it is back",
    "asked": "questions for packets of clients without a flow",
    "hits": "answered with a flow",
    "misses": "answered: Redis has none",
    "forged": "answered: what Redis has was not sealed by this fleet for this client and VIP, or is stale",
    "stale": "of these, sealed too long ago or in the future: an old value put back, or clocks that differ",
    "unavailable": "answered: Redis was away or late",
    "unanswered": "answers that a worker did not take, as it was behind or restarted",
    "timeouts": "pipelines that Redis did not answer in time",
    "reconnects": "connections made anew",
    "refused": "commands that Redis refused: it is full, read-only, or the user may not",
    "moved": "commands sent to a Cluster node that no longer has the slot",
    "again": "times that relays were asked to tell of every flow again: Redis was away, or had lost them",
    "malformed": "messages of a worker that make no sense",
    "leases_forged": "leases that this fleet did not seal, or not in time",
}


@cli.group()
def cache() -> None:
    """Look into the flow cache in Redis."""


@cache.command()
@click.argument("client", metavar="ADDR:PORT")
@click.option("--vip", metavar="ADDR:PORT", help="Only this VIP; default: every one that is known.")
@state_dir_option
@json_option
def get(state_dir: StateDir, client: str, vip: str | None, as_json: bool) -> None:
    """Show what the cache has of a client, as `relayctl flows` names it."""
    client = parse_client(client)
    _check_address("ADDR:PORT", client, "a flow is that of an address and its port")
    if vip is not None:
        _check_address("--vip", vip, "write it as ADDR:PORT")
    rows = ask(state_dir, "cache_get", timeout_s=_TIMEOUT_S, client=client, vip=vip)
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("no VIP is known here; --vip names one")
        return
    print_table(
        client,
        ("vip", "state", "transceiver", "ufrag tag", "sealed", "lapses in", "why"),
        (
            (
                row["vip"],
                row["state"],
                row["transceiver"],
                row["ufrag_tag"],
                None if row["age_s"] is None else f"{human_duration(row['age_s'])} ago",
                None if row["ttl_s"] is None else human_duration(row["ttl_s"]),
                row["why"] or None,
            )
            for row in rows
        ),
        wrap_last=True,
    )


def _check_address(field: str, text: str, hint: str) -> None:
    try:
        Address.parse(text)
    except ValueError:
        raise ConfigError(field, f"{text!r} is no address with a port; {hint}") from None


@cache.command()
@state_dir_option
@json_option
def stats(state_dir: StateDir, as_json: bool) -> None:
    """Show how often the cache was told and asked, whether Redis can be used, and its memory."""
    report = ask(state_dir, "cache_stats", timeout_s=_TIMEOUT_S)
    if as_json:
        print_json(report)
        return
    click.echo(f"redis {describe_redis(report)}")
    for lane in ("reads", "writes"):
        breaker, times = report[lane], report[f"{lane.removesuffix('s')}_ms"]
        error = f": {breaker['error']}" if breaker["error"] else ""
        took = "" if times["median"] is None else f", median {times['median']} ms, p99 {times['p99']} ms"
        click.echo(f"{lane}: breaker {breaker['state']}, {report['waiting'][lane]} waiting{took}{error}")
    for server in report["servers"]:
        if not server["error"] or server["error"] != report["reads"]["error"]:  # that was told just above
            click.echo(f"server {server['server']}: {server['error'] or _describe_server(server)}")
    print_table(
        "\nsince the agent's start",
        ("count", "times", "meaning"),
        (
            (name, report["counts"][name], _MEANINGS.get(name, ""))
            for name in (*_MEANINGS, *(report["counts"].keys() - _MEANINGS.keys()))
            if name in report["counts"]
        ),
        wrap_last=True,
    )


def _describe_server(server: dict[str, Any]) -> str:
    """A server may leave anything out, or say what is no number."""
    keys, used, bound = (server[field] for field in ("keys", "used_memory_bytes", "maxmemory_bytes"))
    told = [
        str(server["role"]),
        f"Redis {server['version']}",
        count_of(keys, "key") if isinstance(keys, int) else "keys not known",
        human_bytes(used) if isinstance(used, int) else "memory not known",
    ]
    if isinstance(bound, int):
        of_bound = f" of {human_bytes(bound)} ({server['maxmemory_policy']})" if bound else " without a bound"
        told[-1] += of_bound
    return ", ".join([*told, f"{server['evicted_keys']} evicted"])
