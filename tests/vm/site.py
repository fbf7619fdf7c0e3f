"""The hosts of an inventory at work: what relayctl says on each, resets, and what is to hold between tests."""

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.vm.inventory import ClientEntry, HostEntry, Inventory, RelayEntry, TransceiverEntry
from tests.vm.ssh import Host, RemoteError

_Value = TypeVar("_Value")
# Not without `sync`: files that an earlier test installed may not be on the disk yet.
_RESET = "sync; echo 1 >/proc/sys/kernel/sysrq; (sleep 1; echo b >/proc/sysrq-trigger) >/dev/null 2>&1 </dev/null &"
_CLEAN_S = 240.0
_PAUSE_S = 1.0


def on_host(name: str) -> Path:
    """A script that runs on a host, in relayctl's environment."""
    return Path(__file__).parent / "on_host" / f"{name}.py"


def wait_for(condition: Callable[[], _Value | None], timeout_s: float, what: str) -> _Value:
    """The first truthy value of ``condition``; fails naming ``what``."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(_PAUSE_S)
    return value


class Node:
    """A host with relayctl on it."""

    def __init__(self, host: Host, entry: HostEntry, inventory: Inventory) -> None:
        self.host = host
        self.entry = entry
        self.inventory = inventory

    @property
    def name(self) -> str:
        """As in the inventory."""
        return self.entry.ssh

    def relayctl(self, *arguments: str, timeout_s: float | None = None) -> str:
        """What a relayctl command prints, as root."""
        return self.host.run("relayctl", *arguments, root=True, timeout_s=timeout_s)

    def relayctl_json(self, *arguments: str) -> Any:
        """The same with ``--json``."""
        return self.host.ask("relayctl", *arguments, "--json", root=True)

    def status(self) -> dict[str, Any]:
        """``relayctl status``."""
        return dict(self.relayctl_json("status"))

    def try_status(self) -> dict[str, Any] | None:
        """The same, or None while there is none: a host that boots, a service between two processes."""
        try:
            return self.status()
        except RemoteError:
            return None

    def wait_until_running(self, but_pid: int = 0) -> dict[str, Any]:
        """Until a supervisor, another than that of ``but_pid``, serves; its status."""

        def is_running() -> dict[str, Any] | None:
            status = self.try_status()
            return status if status and status["state"] == "running" and status["pid"] != but_pid else None

        return wait_for(is_running, self.inventory.boot_s, f"relayctl on {self.name}")

    def boot_id(self) -> str:
        """Another one after each boot."""
        return self.host.run("cat", "/proc/sys/kernel/random/boot_id").strip()

    def reset(self) -> None:
        """As by its reset button; returns while it is about to happen."""
        self.host.run("sh", "-c", _RESET, root=True)
        self.host.disconnect()

    def wait_until_back(self, boot_id: str) -> float:
        """Until ssh answers after a reset, another boot than ``boot_id``; how long that took, in seconds."""
        began = time.monotonic()

        def is_back() -> bool:
            try:
                self.host.connect()
                return self.boot_id() != boot_id
            except RemoteError:
                return False

        wait_for(is_back, self.inventory.boot_s, f"{self.name} after its reset")
        return time.monotonic() - began

    def journal(self, since: str) -> str:
        """The service's log since a moment of ``now``."""
        unit = self.inventory.service
        return self.host.run(
            "journalctl", "--no-pager", "-o", "cat", "-u", unit, "--since", f"@{since}", root=True
        )

    def now(self) -> str:
        """The host's clock, in seconds."""
        return self.host.run("date", "+%s").strip()

    def mac(self, interface: str) -> str:
        """Of an interface."""
        return self.host.run("cat", f"/sys/class/net/{interface}/address").strip()

    def ethtool_counters(self, interface: str) -> dict[str, int]:
        """``ethtool -S``; nothing where the driver has none."""
        said = self.host.run("ethtool", "-S", interface, root=True, fails=True)
        return {name.strip(): int(count) for name, count in re.findall(r"^\s*(\S.*?): (\d+)$", said, re.M)}

    def ethtool_driver(self, interface: str) -> dict[str, str]:
        """``ethtool -i``."""
        said = self.host.run("ethtool", "-i", interface, root=True)
        return dict(re.findall(r"^([a-z-]+): *(.*?) *$", said, re.M))

    def ethtool_queues(self, interface: str) -> dict[str, int]:
        """``ethtool -l``: queues in use by kind, without those of which there are none."""
        said = self.host.run("ethtool", "-l", interface, root=True, fails=True)
        now = said.partition("Current hardware settings:")[2]
        return {name: int(count) for name, count in re.findall(r"^(\w+):\s+(\d+)$", now, re.M) if int(count)}


class ClientNode(Node):
    """Where calls come from."""

    entry: ClientEntry
    directory = ""

    def send_scripts(self) -> None:
        """Have what runs there in a directory of its own."""
        self.directory = self.host.run("mktemp", "-d", "/tmp/relayctl-vm-XXXXXX").strip()
        for name in ("caller", "binding_requests"):
            self.host.run("sh", "-c", f"cat >{self.directory}/{name}.py", given=on_host(name).read_text())

    def remove_scripts(self) -> None:
        """The directory again."""
        if self.directory:
            self.host.run("rm", "-rf", self.directory, root=True)

    def script(self, name: str) -> list[str]:
        """The command that runs one of them in relayctl's environment."""
        return [f"{self.inventory.venv}/bin/python", "-u", f"{self.directory}/{name}.py"]

    def addresses(self) -> set[str]:
        """Of the interface to the relay."""
        [link] = self.host.ask("ip", "-j", "address", "show", "dev", self.entry.interface)
        return {entry["local"] for entry in link["addr_info"]}

    @contextlib.contextmanager
    def without_vips(self, family: int) -> Iterator[None]:
        """Those of a family (4 or 6) cannot be reached for the length of the block."""
        routes = [
            [f"-{family}", "route", "{}", "prohibit", f"{vip.ip}/{vip.ip.max_prefixlen}"]
            for vip in self.inventory.vips
            if vip.family == family
        ]
        with contextlib.ExitStack() as stack:
            for route in routes:
                add, remove = ([word.format(verb) for word in route] for verb in ("add", "del"))
                self.host.run("ip", *add, root=True)
                stack.callback(self.host.run, "ip", *remove, root=True)
            yield


class RelayNode(Node):
    """The relay."""

    entry: RelayEntry

    def ask(self, method: str) -> Any:
        """``relayctl METHOD``."""
        return self.relayctl_json(method)

    def flows_of(self, addresses: set[str]) -> list[dict[str, Any]]:
        """Assured flows of clients at these addresses, whose packets still come."""
        flows: list[dict[str, Any]] = self.ask("flows")
        return [
            flow
            for flow in flows
            if flow["client"].rpartition(":")[0].strip("[]") in addresses
            and flow["state"] == "assured"
            and flow["idle_s"] < 5
        ]

    def program_ids(self) -> dict[str, int]:
        """The XDP program on each interface, as the kernel tells it."""
        return {name: self.xdp_link(name)[1] for name in self.entry.interfaces}

    def xdp_link(self, interface: str) -> tuple[str, int]:
        """Mode and program id that ``ip link`` shows."""
        [link] = self.host.ask("ip", "-d", "-j", "link", "show", "dev", interface)
        xdp = link.get("xdp", {})
        modes = {1: "native", 2: "generic", 3: "hardware", 4: "several"}
        return modes.get(xdp.get("mode", 0), "none"), int(xdp.get("prog", {}).get("id", 0))

    def way_to(self, host: str) -> str:
        """The interface that XDP forwards to a transceivers' host by; empty if the workers do."""
        for hop in self.status()["relay"]["kernel"]["next_hops"]:
            if hop["host"] == host:
                return str(hop["interface"] or "")
        return ""


class TransceiverNode(Node):
    """A host of transceivers."""

    entry: TransceiverEntry
    _token: str | None = None

    def token(self) -> str:
        """What its signaling asks for."""
        if self._token is None:
            file = self.status()["transceivers"]["bearer_token_file"]
            self._token = self.host.run("cat", file, root=True).strip() if file else ""
        return self._token

    def sessions(self) -> list[dict[str, Any]]:
        """``relayctl sessions``."""
        return list(self.relayctl_json("sessions"))


@dataclass
class Site:
    """All hosts. ``workers`` and ``version`` are the relay's before the first test."""

    inventory: Inventory
    client: ClientNode
    relay: RelayNode
    transceivers: list[TransceiverNode]
    redis: Node | None
    workers: int = 0
    version: str = ""

    @property
    def nodes(self) -> list[Node]:
        """Every host."""
        return [self.client, self.relay, *self.transceivers, *([self.redis] if self.redis else [])]

    def transceiver_of(self, address: str) -> TransceiverNode:
        """Whose address a flow names, as HOST:PORT."""
        host = address.rpartition(":")[0].strip("[]")
        [node] = [node for node in self.transceivers if node.entry.address == host]
        return node

    def wait_until_clean(self) -> None:
        """Until everything is as before the first test; fails with what is not."""
        deadline = time.monotonic() + _CLEAN_S
        while problems := self._problems():
            assert time.monotonic() < deadline, f"after {_CLEAN_S:g} s still: {'; '.join(problems)}"
            time.sleep(_PAUSE_S)

    def _problems(self) -> list[str]:
        with ThreadPoolExecutor() as pool:
            relay = pool.submit(self.relay.try_status)
            transceivers = list(pool.map(lambda node: node.try_status(), self.transceivers))
        problems = self._problems_of_relay(relay.result())
        for node, status in zip(self.transceivers, transceivers, strict=True):
            if status is None or status["state"] != "running":
                problems.append(f"relayctl on {node.name} does not run")
                continue
            for process in status["transceivers"]["processes"]:
                if process["state"] != "ready" or process.get("sessions"):
                    problems.append(
                        f"{process['name']} on {node.name} is {process['state']}, {process.get('sessions')} sessions"
                    )
        return problems

    def _problems_of_relay(self, status: dict[str, Any] | None) -> list[str]:
        if status is None or status["state"] != "running" or "kernel" not in status["relay"]:
            return [f"relayctl on {self.relay.name} does not run with XDP"]
        relay, kernel = status["relay"], status["relay"]["kernel"]
        problems = [
            f"{attached['mode']} XDP on {attached['interface']} ({attached['why']})"
            for attached in kernel["interfaces"]
            if attached["mode"] != self.inventory.xdp_mode
        ]
        if not kernel["fastpath"]:
            problems.append("the fast path is off")
        if self.workers not in (0, len(relay["workers"])):
            problems.append(f"{len(relay['workers'])} workers, not {self.workers}")
        problems += [f"{w['name']} is {w['state']}" for w in relay["workers"] if w["state"] != "ready"]
        if self.redis is not None and status["fleet"]["state"] != "connected":
            problems.append(f"Redis is {status['fleet']['state']}")
        return problems


@contextlib.contextmanager
def connected(inventory: Inventory) -> Iterator[Site]:
    """Every host logged in to, relay and transceivers in order. Raises RemoteError."""
    with contextlib.ExitStack() as stack:
        # Short: a control socket's path may have about a hundred characters.
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vm-", dir="/tmp")))

        def host(entry: HostEntry) -> Host:
            made = Host(entry.ssh, inventory.ssh_config, sockets, timeout_s=inventory.command_s)
            return stack.enter_context(made)

        entries = inventory.transceivers
        site = Site(
            inventory,
            ClientNode(host(inventory.client), inventory.client, inventory),
            RelayNode(host(inventory.relay), inventory.relay, inventory),
            [TransceiverNode(host(entry), entry, inventory) for entry in entries],
            Node(host(inventory.redis), inventory.redis, inventory) if inventory.redis else None,
        )
        site.client.send_scripts()
        stack.callback(site.client.remove_scripts)
        site.wait_until_clean()
        status = site.relay.status()
        site.workers, site.version = len(status["relay"]["workers"]), status["version"]
        yield site


def describe(site: Site) -> list[tuple[str, str]]:
    """What it runs on, for the report: name and value."""
    relay = site.relay
    facts = [("hosts", f"{site.inventory.name}: {', '.join(node.name for node in site.nodes)}")]
    facts.append(("relayctl", f"{site.version}, {site.workers} workers"))
    facts.append(("relay's kernel", relay.host.run("uname", "-r").strip()))
    facts.append(("relay's CPUs", relay.host.run("nproc").strip()))
    virtual = relay.host.run("systemd-detect-virt", fails=True).strip()
    facts.append(("relay's hypervisor", "none: a physical machine" if virtual == "none" else virtual))
    for interface in relay.entry.interfaces:
        driver = relay.ethtool_driver(interface)
        mode, _ = relay.xdp_link(interface)
        said = [f"driver {driver.get('driver')} {driver.get('version', '')}".strip(), f"{mode} XDP"]
        said += [f"{key} {driver[key]}" for key in ("firmware-version", "bus-info") if driver.get(key)]
        queues = relay.ethtool_queues(interface)
        said.append(
            "queues " + (", ".join(f"{n} {kind.lower()}" for kind, n in queues.items()) or "not told")
        )
        facts.append((f"relay's {interface}", ", ".join(said)))
    carrier = (
        "by the commands of the inventory" if site.inventory.carrier else "by the host's own `ip link set`"
    )
    facts.append(("carrier taken away", carrier))
    return facts
