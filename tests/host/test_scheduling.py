"""What a process asks of the scheduler, read back from the kernel."""

import os
import re
import subprocess
import sys

import pytest

_ASK = (
    "import os; from host.scheduling import take_short_turns; os.nice({niceness}); print(take_short_turns())"
)
_READ = "; print(os.nice(0)); print(open('/proc/self/sched').read())"
_HAS_TURNS = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12)


@pytest.mark.parametrize("niceness", [0, 5])
def test_turns_are_short_and_the_share_stays(niceness: int) -> None:
    code = _ASK.format(niceness=niceness) + _READ
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split()[:2] == ["True", str(niceness)]
    found = re.search(r"^se\.slice\s*:\s*(\d+)", told, re.MULTILINE)
    assert not _HAS_TURNS or (found and int(found[1]) == 300_000)
