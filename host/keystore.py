"""The fleet's keys on disk: one JSON file, readable by its owner only.

    {"sealing": 1, "keys": [{"id": 1, "secret": "<32 bytes, base64>"}]}

Every relay and transceiver of a cluster needs the same file. To rotate: add a key to the file of every relay, then of
every transceiver, then make it the sealing one at the transceivers; remove the old one after the longest session.
"""

import json
import secrets
from pathlib import Path

from host.errors import ConfigError
from host.state_dir import read_or_create_secret, read_secret
from wire.keys import SECRET_BYTES, FleetKey, KeyRing


def load_or_create_keys(path: Path) -> KeyRing:
    """The keys in ``path``, made at first use. Raises ConfigError naming the field."""
    return _parse(path, read_or_create_secret(path, _new_key_file))


def load_keys(path: Path) -> KeyRing:
    """The keys in ``path``. Raises ConfigError naming the field, also if there is no such file."""
    if not path.exists():
        raise ConfigError(
            str(path), "no keys there; `relayctl start` makes them, --state-dir or --config names others"
        )
    return _parse(path, read_secret(path))


def _parse(path: Path, text: str) -> KeyRing:
    try:
        return KeyRing.from_json(json.loads(text))
    except ValueError as error:
        raise ConfigError(str(path), f"{error}; mend it, or copy it from another host of the fleet") from None


def _new_key_file() -> str:
    keys = KeyRing([FleetKey(1, secrets.token_bytes(SECRET_BYTES))], 1)
    return json.dumps(keys.to_json(), indent=2) + "\n"
