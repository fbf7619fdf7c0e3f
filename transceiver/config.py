"""A transceiver host's configuration: the ``[transceiver]`` table, checked once."""

import ssl
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Self

from host.config_table import ConfigTable
from host.errors import ConfigError
from transceiver.media.settings import MediaPath
from wire.address import Address

_MAX_MEMORY_MB = 1 << 24


class EchoMode(StrEnum):
    """What the echo backend does with audio."""

    PASSTHROUGH = "passthrough"
    """Packets go back as they came."""
    TRANSCODE = "transcode"
    """Decoded to PCM16 at 24 kHz and encoded again, as for a speech model."""


@dataclass(frozen=True, kw_only=True)
class TransceiverConfig:
    """Settings of the transceivers on one host.

    processes: each has one UDP socket and one event loop.
    listen: base address; process N takes port + N, or any free port where the port is 0. Relays must reach it.
    relay_networks: where SPP is accepted from.
    http: the signaling port that all processes share.
    tls_cert, tls_key: PEM files; without them and beyond loopback, ``insecure`` must say that TLS ends elsewhere.
    bearer_token_file: its token is asked for beyond loopback, or wherever this is set.
    origins: web origins other than our own whose pages may call.
    requests_per_s, request_burst: signaling requests that one address may make.
    max_sessions: of each process.
    max_memory_mb: resident memory (MiB) of a process, above which it takes no new sessions; 0: its share of four fifths of
    what the machine, or the cgroup, has.
    max_cpu: CPU time of a process, as a share of a core, above which it takes no new sessions. 0.9: where its one thread has
    no time left, calls break up.
    media: who receives and sends audio: direct (ours) or aiortc.
    echo: what the echo backend does with audio.
    opus_complexity: of the encoder at most, 0 to 10: half the CPU time at 5. opus_adaptive: less where the process is busy.
    """

    processes: int
    listen: Address
    relay_networks: tuple[IPv4Network | IPv6Network, ...]
    http: Address
    tls_cert: Path | None
    tls_key: Path | None
    insecure: bool
    bearer_token_file: Path | None
    origins: tuple[str, ...]
    requests_per_s: float
    request_burst: int
    max_sessions: int
    max_memory_mb: int
    max_cpu: float
    media: MediaPath
    echo: EchoMode
    opus_complexity: int
    opus_adaptive: bool

    @classmethod
    def from_table(cls, table: ConfigTable, default_token_file: Path) -> Self:
        """Take the ``[transceiver]`` table apart. Raises ConfigError."""
        http = table.take_address("http", "127.0.0.1:8080", wildcard=True)
        config = cls(
            processes=table.take_int("processes", 2, low=1, high=256),
            listen=table.take_address("listen", "127.0.0.1:0"),
            relay_networks=table.take_networks("relay_networks", ["127.0.0.0/8", "::1/128"]),
            http=http,
            tls_cert=table.take_path("tls_cert", None),
            tls_key=table.take_path("tls_key", None),
            insecure=table.take("insecure", bool, False),
            bearer_token_file=table.take_path(
                "bearer_token_file", None if http.ip.is_loopback else default_token_file
            ),
            origins=table.take_strings("origins"),
            requests_per_s=table.take("requests_per_s", float, 20.0),
            request_burst=table.take_int("request_burst", 100, low=1, high=100_000),
            max_sessions=table.take_int("max_sessions", 200, low=1, high=100_000),
            max_memory_mb=table.take_int("max_memory_mb", 0, low=0, high=_MAX_MEMORY_MB),
            max_cpu=table.take("max_cpu", float, 0.9),
            media=MediaPath(table.take_choice("media", MediaPath.DIRECT, list(MediaPath))),
            echo=EchoMode(table.take_choice("echo", EchoMode.PASSTHROUGH, list(EchoMode))),
            opus_complexity=table.take_int("opus_complexity", 5, low=0, high=10),
            opus_adaptive=table.take("opus_adaptive", bool, True),
        )
        table.finish()
        config._check(table)
        return config

    def _check(self, table: ConfigTable) -> None:
        if self.listen.port and self.listen.port + self.processes - 1 > 65535:
            raise ConfigError(
                table.field("listen"), f"{self.listen} leaves no port for each of {self.processes} processes"
            )
        if not 0 < self.requests_per_s < float("inf"):
            raise ConfigError(
                table.field("requests_per_s"), f"needs to be above 0, not {self.requests_per_s}"
            )
        if not 0 < self.max_cpu < float("inf"):
            raise ConfigError(
                table.field("max_cpu"),
                f"needs to be above 0 (0.9: nine tenths of a core), not {self.max_cpu}",
            )
        if self.tls_key is not None and self.tls_cert is None:
            raise ConfigError(table.field("tls_key"), "needs tls_cert beside it")
        for origin in self.origins:
            scheme, separator, host = origin.partition("://")
            if not (scheme and separator and host) or "/" in host:
                raise ConfigError(
                    table.field("origins"),
                    f"{origin!r} is no web origin; write it as https://app.example.org, without a path",
                )
        if self.tls_cert is not None:
            self._check_tls(table, self.tls_cert)
        elif not self.http.ip.is_loopback and not self.insecure:
            raise ConfigError(
                table.field("http"),
                f"{self.http} is beyond loopback: set tls_cert and tls_key, or --insecure if TLS ends at a proxy before it",
            )

    def _check_tls(self, table: ConfigTable, certificate: Path) -> None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                table.field("tls_cert"), f"cannot load {certificate} with its key ({error})"
            ) from None
