"""hash.h, compiled for this machine, gives what relay/core/steering.py gives."""

import random
import subprocess
from pathlib import Path

from relay.core.steering import hash_address
from wire.address import Address

_INCLUDE = Path(__file__).parents[2] / "bpf" / "include"
_PROGRAM = f"""
#include <stdio.h>
#include "{_INCLUDE}/hash.h"
int main(void)
{{
	struct endpoint endpoint = {{0}};
	__u64 key[2];

	while (fread(&endpoint, 18, 1, stdin) == 1 && fread(key, 16, 1, stdin) == 1)
		printf("%llu\\n", (unsigned long long)hash_endpoint(&endpoint, key));
	return 0;
}}
"""


def test_c_and_python_hash_alike(tmp_path: Path) -> None:
    (tmp_path / "hash.c").write_text(_PROGRAM)
    subprocess.run(["cc", "-O2", "-o", tmp_path / "hash", tmp_path / "hash.c"], check=True)
    source = random.Random(1)
    cases = [
        (
            Address(source.randbytes(source.choice((4, 16))), source.randrange(65536)),
            (source.getrandbits(64), source.getrandbits(64)),
        )
        for _ in range(1000)
    ]
    packed = b"".join(
        address.mapped
        + address.port.to_bytes(2, "big")
        + b"".join(word.to_bytes(8, "little") for word in key)
        for address, key in cases
    )
    told = subprocess.run([tmp_path / "hash"], input=packed, capture_output=True, check=True).stdout.split()
    assert [int(word) for word in told] == [hash_address(address, key) for address, key in cases]
