"""Runs on the relay as root in relayctl's environment: ``CONFIG TRANSCEIVER COUNT``; prints sealed ufrags as JSON."""

import json
import os
import sys
import time
from pathlib import Path

from cli.config import load_config
from host.keystore import load_keys
from host.state_dir import StateDir, default_state_dir
from wire.address import Address
from wire.ufrag import NONCE_BYTES, RouteHint, derive_ice_pwd, seal_ufrag


def main(config_path: str, transceiver: str, count: str) -> None:
    config = load_config(Path(config_path), {}, StateDir(default_state_dir()))
    keys = load_keys(config.keys_file)
    issued_at = int(time.clock_gettime(time.CLOCK_REALTIME))
    sealed = []
    for _ in range(int(count)):
        hint = RouteHint(config.cluster_id, Address.parse(transceiver), issued_at, os.urandom(NONCE_BYTES))
        ufrag = seal_ufrag(keys, hint)
        sealed.append({"ufrag": ufrag, "ice_pwd": derive_ice_pwd(keys, ufrag)})
    sys.stdout.write(json.dumps(sealed))


if __name__ == "__main__":
    main(*sys.argv[1:])
