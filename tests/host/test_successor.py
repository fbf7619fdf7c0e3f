"""A process that becomes another one: what it keeps, and what it does with its predecessor's children."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from host.successor import become, inherited_children, reap
from tests.host.deadline import until
from tests.host.programs import is_alive

_TELL = """
import json, os, signal
print(json.dumps({
    "pid": os.getpid(),
    "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
    "variable": os.environ.get("VARIABLE"),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
}))
"""
_PREDECESSOR = f"""
import os, sys
from host.successor import become
kept, also_inheritable = os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
os.set_inheritable(also_inheritable, True)
assert kept == 3
become([sys.executable, "-c", {_TELL!r}], [kept], {{**os.environ, "VARIABLE": "new"}})
"""


def test_same_process_with_one_descriptor_more_than_the_standard_ones() -> None:
    with subprocess.Popen([sys.executable, "-c", _PREDECESSOR], stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate(timeout=20)
    told = json.loads(said)
    assert told == {"pid": process.pid, "fds": [0, 1, 2, 3], "variable": "new", "blocked": [2, 15]}


def test_command_that_cannot_run_leaves_the_process_as_it_is(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("not a program")
    program.chmod(0o755)
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match="Exec format error"):
            become([str(program)], [writer], {})
        os.write(writer, b"x")
        assert os.read(reader, 1) == b"x"
    finally:
        os.close(reader)
        os.close(writer)


def sleeping(seconds: str) -> int:
    return os.posix_spawn("/bin/sleep", ["sleep", seconds], {})


async def test_children_are_reaped_once_they_have_ended() -> None:
    pids = [sleeping("0"), sleeping("600"), sleeping("600")]
    assert set(pids) <= inherited_children()
    strangers = 2**22  # above any pid
    reaping = asyncio.create_task(reap([*pids, strangers]))
    try:
        await until(lambda: not os.path.exists(f"/proc/{pids[0]}"), "no zombie of the first", 5)
        assert is_alive(pids[1])
        os.kill(pids[1], 9)
        await until(lambda: not os.path.exists(f"/proc/{pids[1]}"), "no zombie of the second", 5)
        assert not reaping.done()
    finally:
        os.kill(pids[2], 9)
    await asyncio.wait_for(reaping, 5)
    assert not inherited_children() & set(pids)
