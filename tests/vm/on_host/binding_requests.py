"""Runs on the client in relayctl's environment: Binding requests from many ports, until standard input ends.

The first line of standard input is JSON: ``vip``, ``source`` (an address of this host), ``sessions`` (each ``ufrag`` and
``ice_pwd``) and ``ports_each``, how many ports send the ufrag of one session. Then a line of JSON with the packets sent
from each port, as they are after each round, and a last one with ``over``.
"""

import json
import os
import select
import socket
import sys
from collections import Counter

from wire.address import Address
from wire.stun import write_binding_request

# Under the rates that a relay grants to a source that it does not know (200/s), and to a ufrag (20/s).
_PAUSE_S = 0.05
_ROUND_S = 2.0


def is_over(wait_s: float) -> bool:
    """Whether standard input ended within that time."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


def main() -> None:
    order = json.loads(sys.stdin.readline())
    vip = Address.parse(order["vip"])
    family = socket.AF_INET if vip.family == 4 else socket.AF_INET6
    senders = []
    for session in order["sessions"]:
        for _ in range(order["ports_each"]):
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.bind((order["source"], 0))
            sock.connect((str(vip.ip), vip.port))
            senders.append((sock, session["ufrag"], session["ice_pwd"].encode()))
    sent: Counter[int] = Counter()
    over = False
    while not over:
        for sock, ufrag, ice_pwd in senders:
            sock.send(write_binding_request(os.urandom(12), f"{ufrag}:vm00", ice_pwd))
            sent[sock.getsockname()[1]] += 1
            over = over or is_over(_PAUSE_S)
        sys.stdout.write(json.dumps({"sent": sent, "over": over}) + "\n")
        sys.stdout.flush()
        over = over or is_over(_ROUND_S)
    sys.stdout.write(json.dumps({"sent": sent, "over": True}) + "\n")
    for sock, _, _ in senders:
        sock.close()


if __name__ == "__main__":
    main()
