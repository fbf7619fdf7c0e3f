"""``relayctl token``: seal and open ufrags by hand, for engineers who debug a route."""

import datetime
import os
import time
from pathlib import Path

import click

from cli.config import Role, load_config
from cli.main import cli, config_option, json_option, state_dir_option
from cli.render import print_json
from host.errors import ConfigError, OperatorError
from host.keystore import load_keys
from host.state_dir import StateDir
from wire.address import Address
from wire.errors import WireError
from wire.ufrag import NONCE_BYTES, RouteHint, derive_ice_pwd, open_ufrag_untrusted, seal_ufrag


@cli.group()
def token() -> None:
    """Seal or open the routing hint in a ufrag, with the fleet's keys."""


# A token is made and read on any host, also where no relay could listen.
_NO_RELAY = {"host": {"role": Role.TRANSCEIVERS.value}}


@token.command()
@click.argument("transceiver", metavar="ADDR:PORT")
@state_dir_option
@config_option
@json_option
def seal(transceiver: str, state_dir: StateDir, config_path: Path | None, as_json: bool) -> None:
    """Print a ufrag and its ice-pwd that lead to the transceiver at ADDR:PORT."""
    try:
        address = Address.parse(transceiver)
    except ValueError as error:
        raise ConfigError("ADDR:PORT", str(error)) from None
    config = load_config(config_path, _NO_RELAY, state_dir)
    keys = load_keys(config.keys_file)
    issued_at = int(time.clock_gettime(time.CLOCK_REALTIME))
    ufrag = seal_ufrag(keys, RouteHint(config.cluster_id, address, issued_at, os.urandom(NONCE_BYTES)))
    sealed = {"ufrag": ufrag, "ice_pwd": derive_ice_pwd(keys, ufrag)}
    if as_json:
        print_json(sealed)
    else:
        click.echo("\n".join(f"{name:8} {value}" for name, value in sealed.items()))


@token.command("open")
@click.argument("ufrag")
@state_dir_option
@config_option
@json_option
def open_(ufrag: str, state_dir: StateDir, config_path: Path | None, as_json: bool) -> None:
    """Print what a sealed UFRAG says; the first part of a check's USERNAME will do."""
    config = load_config(config_path, _NO_RELAY, state_dir)
    try:
        hint = open_ufrag_untrusted(load_keys(config.keys_file), ufrag.partition(":")[0])
    except WireError as error:
        raise OperatorError(f"ufrag: {error} ({error.fault.value})") from None
    issued_at = datetime.datetime.fromtimestamp(hint.issued_at, datetime.UTC)
    age_s = int(time.clock_gettime(time.CLOCK_REALTIME)) - hint.issued_at
    opened = {
        "cluster_id": hint.cluster_id,
        "transceiver": str(hint.transceiver),
        "issued_at": issued_at.isoformat(),
        "age_s": age_s,
        "nonce": hint.nonce.hex(),
    }
    if as_json:
        print_json(opened)
    else:
        click.echo("\n".join(f"{name:12} {value}" for name, value in opened.items()))
