"""Memory and CPU limits of a process: the gauge as tables, what a machine has, and real processes that are full."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.host.deadline import until as eventually
from tests.transceiver.caller import RelayShim, calling
from tests.transceiver.processes import KEYS, Process, serving, serving_siblings
from tests.transceiver.whip import call_on, posted
from transceiver.overload import (
    MEBIBYTE,
    Gauge,
    Limits,
    Overload,
    Usage,
    default_memory_bytes,
    find_memory_bytes,
    read_usage,
)
from transceiver.signaling.resources import INTERNAL_HEADER

NONE, MEMORY, CPU = Overload.NONE, Overload.MEMORY, Overload.CPU
UNLIMITED = Limits()
NO_MEMORY = Limits(memory_bytes=MEBIBYTE)
# Far below what anything that runs takes, on whatever machine.
NO_CPU = Limits(cpu=1e-9)


@pytest.mark.parametrize(
    ("looks", "overloads"),
    [
        pytest.param([(98, 0)], [NONE], id="room for one more"),
        pytest.param([(99, 0)], [NONE], id="just room for one more"),
        pytest.param([(100, 0)], [MEMORY], id="the next one does not fit"),
        pytest.param([(120, 0)], [MEMORY], id="above already"),
        pytest.param([(50, 49), (50, 50)], [NONE, MEMORY], id="those that connect will need some"),
        pytest.param([(50, 50), (98, 0)], [MEMORY, MEMORY], id="they took it"),
        pytest.param([(50, 50), (50, 0)], [MEMORY, NONE], id="they never came"),
        pytest.param([(100, 0), (96, 0), (94, 0)], [MEMORY, MEMORY, NONE], id="ends under 95 %"),
        pytest.param([(100, 0), (94, 0), (96, 0)], [MEMORY, NONE, NONE], id="does not begin anew there"),
    ],
)
def test_memory(looks: list[tuple[int, int]], overloads: list[Overload]) -> None:
    """The limit is 100 MiB; each look is (resident MiB, sessions that connect)."""
    gauge = Gauge(Limits(memory_bytes=100 * MEBIBYTE))
    seen = []
    for now, (resident, connecting) in enumerate(looks):
        gauge.update(Usage(resident * MEBIBYTE, 0.0), connecting, float(now))
        seen.append(gauge.overload)
    assert seen == overloads


@pytest.mark.parametrize(
    ("shares", "overloads"),
    [
        pytest.param([0.5] * 8, [NONE] * 8, id="below"),
        pytest.param([1.0] * 3, [NONE] * 3, id="not known before 2 s: a start is not a load"),
        pytest.param([1.0] * 5, [NONE] * 3 + [CPU] * 2, id="known then"),
        pytest.param([0.0] * 4 + [1.0] * 2, [NONE] * 6, id="half a second is forgiven"),
        pytest.param([0.0] * 4 + [1.0] * 4, [NONE] * 7 + [CPU], id="two seconds are not"),
        pytest.param([1.0] * 4 + [0.75] * 4, [NONE] * 3 + [CPU] * 5, id="75 % is not under 90 % of 80 %"),
        pytest.param([1.0] * 4 + [0.7] * 4, [NONE] * 3 + [CPU] * 4 + [NONE], id="70 % is"),
        pytest.param([0.75] * 8, [NONE] * 8, id="75 % begins nothing"),
    ],
)
def test_cpu(shares: list[float], overloads: list[Overload]) -> None:
    """The limit is 80 % of a core; each share is that of half a second."""
    gauge = Gauge(Limits(cpu=0.8))
    cpu_s, seen = 100.0, []
    gauge.update(Usage(0, cpu_s), 0, 0.0)
    for half_seconds, share in enumerate(shares, 1):
        cpu_s += share / 2
        gauge.update(Usage(0, cpu_s), 0, half_seconds / 2)
        seen.append(gauge.overload)
    assert seen == overloads


def test_late_look_counts_the_whole_time_since_the_last() -> None:
    gauge = Gauge(Limits(cpu=0.5))
    gauge.update(Usage(0, 0.0), 0, 0.0)
    gauge.update(Usage(0, 5.0), 0, 20.0)
    assert (gauge.cpu, gauge.overload) == (0.25, NONE)


def test_gauge_names_the_setting() -> None:
    gauge = Gauge(Limits(memory_bytes=100 * MEBIBYTE, cpu=0.5))
    gauge.update(Usage(120 * MEBIBYTE, 0.0), 2, 0.0)
    assert "memory 120 MiB, 123 MiB with the next session, transceiver.max_memory_mb is 100" in str(gauge)
    gauge.update(Usage(0, 1.5), 0, 2.0)
    assert str(gauge) == "CPU 75 % of a core, transceiver.max_cpu is 0.5"


def test_usage_is_that_of_this_process() -> None:
    before = read_usage()
    ballast = bytearray(b"x" * (64 * MEBIBYTE))
    after = read_usage()
    assert after.rss_bytes - before.rss_bytes > 32 * MEBIBYTE
    assert after.cpu_s > before.cpu_s > 0
    del ballast


# what a machine has

_UNLIMITED_V1 = "9223372036854771712"


@pytest.mark.parametrize(
    ("cgroups", "files", "mebibytes"),
    [
        pytest.param("", {}, 1000, id="no cgroups"),
        pytest.param("0::/\n", {}, 1000, id="v2, root"),
        pytest.param("0::/\n", {"memory.max": "max"}, 1000, id="v2, no limit"),
        pytest.param("0::/\n", {"memory.max": str(256 * MEBIBYTE)}, 256, id="v2 in a container"),
        pytest.param(
            "0::/a/b\n",
            {"a/memory.max": str(100 * MEBIBYTE), "a/b/memory.max": str(200 * MEBIBYTE)},
            100,
            id="v2, less above",
        ),
        pytest.param("0::/a\n", {"a/memory.max": str(2000 * MEBIBYTE)}, 1000, id="more than there is"),
        pytest.param("0::/../a\n", {"memory.max": str(100 * MEBIBYTE)}, 100, id="out of sight"),
        pytest.param(
            "5:cpu,memory:/a\n1:name=systemd:/x:y\n0::/\n",
            {"memory/a/memory.limit_in_bytes": str(300 * MEBIBYTE)},
            300,
            id="v1",
        ),
        pytest.param(
            "5:memory:/docker/abc\n",
            {"memory/memory.limit_in_bytes": str(300 * MEBIBYTE)},
            300,
            id="v1 in a container",
        ),
        pytest.param(
            "5:memory:/\n", {"memory/memory.limit_in_bytes": _UNLIMITED_V1}, 1000, id="v1, no limit"
        ),
        pytest.param("0::/a\n", {"a/memory.max": ""}, 1000, id="unreadable"),
    ],
)
def test_memory_of_machine_or_cgroup(
    tmp_path: Path, cgroups: str, files: dict[str, str], mebibytes: int
) -> None:
    written = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    written["proc/meminfo"] = "MemTotal:        1024000 kB\nMemFree:          12 kB\n"
    if cgroups:
        written["proc/self/cgroup"] = cgroups
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert find_memory_bytes(tmp_path) == mebibytes * MEBIBYTE


def test_this_machine_has_memory_and_every_process_a_share() -> None:
    available = find_memory_bytes()
    assert available > 64 * MEBIBYTE
    assert default_memory_bytes(1000 * MEBIBYTE, 4) == 200 * MEBIBYTE


# processes


@pytest_asyncio.fixture
async def siblings() -> AsyncIterator[tuple[Process, Process]]:
    """The first has no memory for a session."""
    async with serving_siblings(2, limits=(NO_MEMORY, UNLIMITED)) as (full, roomy):
        full.sessions.publish_load()
        yield full, roomy


pytestmark = pytest.mark.usefixtures("no_task_left")


async def test_sibling_gets_the_calls_of_one_without_memory(siblings: tuple[Process, Process]) -> None:
    full, roomy = siblings
    assert [(await posted(process.public)).status for process in (full, roomy, full)] == [201] * 3
    assert (len(full.sessions), len(roomy.sessions)) == (0, 3)
    assert not full.sessions.refused + roomy.sessions.refused


async def test_process_without_memory_refuses_with_its_reason() -> None:
    async with serving(limits=(NO_MEMORY,)) as process:
        process.sessions.publish_load()
        refused = await posted(process.public)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        asked = await posted(process.internal, **{INTERNAL_HEADER: KEYS.sealing.internal_http})
        assert (asked.status, asked.headers["Retry-After"]) == (503, "5")
        assert await asked.text() == "this transceiver has no memory for another session; try again\n"
        described = process.sessions.describe()
        assert (described["full"], described["refused"]) == ("memory", {"memory": 1})
        assert described["rss_bytes"] > described["max_memory_bytes"] == MEBIBYTE
        assert (await process.public.get("/healthz")).status == 200, "full is not draining"


async def test_refusals_of_a_draining_process_are_counted_as_such(process: Process) -> None:
    process.sessions.draining = True
    assert (await posted(process.public)).status == 503
    assert process.sessions.describe()["refused"] == {"draining": 1}


async def test_call_goes_on_while_its_process_is_over_its_cpu_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the process's own CPU time: only the limit is set to what every process exceeds."""
    caplog.set_level("INFO", "transceiver.sessions")
    shim = RelayShim()
    async with serving(vips=(shim.vip,)) as process:
        shim.transceiver = process.address
        shim.start()
        try:
            async with calling() as caller:
                session = await caller.connect(process)
                process.sessions.gauge.limits = NO_CPU
                await eventually(lambda: process.sessions.load.full == "cpu", "two seconds are known")
                assert (await posted(process.public)).status == 503
                assert process.sessions.describe()["refused"] == {"cpu": 1}
                await caller.say("still here")
                assert session.is_connected
                process.sessions.gauge.limits = UNLIMITED
                await eventually(lambda: process.sessions.load.full is None, "the limit is gone")
                await call_on(process)
                assert len(process.sessions) == 2
        finally:
            shim.stop()
    told = [record.message for record in caplog.records if "new sessions" in record.message]
    assert [message.partition(":")[0] for message in told] == ["no new sessions", "new sessions again"]
    assert "transceiver.max_cpu" in told[0]
