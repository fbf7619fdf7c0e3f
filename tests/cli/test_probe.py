"""``relayctl probe``: a real call, its report, and what it says when there is none."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cli.call import CallReport
from cli.main import EXIT_CALL_FAILED, EXIT_USAGE
from cli.probe import find_problem
from tests.cli.certificate import make_certificate
from tests.cli.relayctl import Relayctl, free_tcp
from tests.host.deadline import wait_until

Another = Callable[[], Relayctl]
Answer = Callable[..., str]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relayctl]:
    """One instance for all calls that go well."""
    relayctl = Relayctl(tmp_path_factory.mktemp("probe") / "state")
    try:
        relayctl.start()
        yield relayctl
    finally:
        relayctl.clean_up()


# a call that goes well


@pytest.mark.slow
def test_report_for_programs(running: Relayctl) -> None:
    done = running.run("probe", running.url, "--duration", "1", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert list(report) == [
        *("session_url", "vips", "phases_ms", "round_trip_ms", "pings"),
        *("uplink", "downlink", "heard", "silent_s", "state", "packets_lost"),
    ]
    assert report["session_url"].startswith(running.url + "whip/sessions/")
    assert report["vips"] == [running.listen]
    phases = report["phases_ms"]
    assert set(phases) == {"answered", "ice", "dtls", "data_channel", "audio"}
    assert 0 < phases["answered"] <= phases["ice"] <= phases["dtls"] <= phases["data_channel"]
    assert phases["dtls"] <= phases["audio"] < 5000
    assert 0 < report["round_trip_ms"]["p50"] <= report["round_trip_ms"]["p99"] < 1000
    assert report["pings"]["sent"] >= report["pings"]["answered"] >= 5
    assert report["uplink"]["sent"] >= 40
    assert report["downlink"]["received"] >= 40
    assert report["uplink"]["lost"] == report["downlink"]["lost"] == report["packets_lost"] == 0
    assert report["pings"]["overdue"] == 0
    assert report["heard"] is True
    assert report["silent_s"] < 1
    assert report["state"] == "connected"


@pytest.mark.slow
def test_report_for_people(running: Relayctl) -> None:
    done = running.run("probe", running.url, "--duration", "1")
    assert (done.returncode, done.stderr) == (0, "")
    for pattern in (
        rf"^call +{re.escape(running.url)}whip/sessions/\S+$",
        rf"^vip +{re.escape(running.listen)} ",
        r"^ +DTLS completed +\d+\.\d$",
        r"^ +data channel open +\d+\.\d$",
        r"^rtt +p50 [\d.]+ ms, p99 [\d.]+ ms \(\d+ of \d+ pings\)$",
        r"^uplink +\d+ packets sent, 0 lost",
        r"^downlink +\d+ packets received, 0 lost$",
        r"^echo +the tone came back$",
    ):
        assert re.search(pattern, done.stdout, re.MULTILINE), pattern


@pytest.mark.slow
def test_call_is_seen_while_it_lasts_and_gone_after(running: Relayctl) -> None:
    probing = running.spawn("probe", running.url, "--duration", "3")
    seen: list[dict[str, object]] = []

    def in_call() -> bool:
        seen[:] = [session for session in running.json("sessions") if session["state"] == "connected"]
        return bool(seen)

    wait_until(in_call, "the session is listed")
    client = str(seen[0]["client"])
    (flow,) = running.json("flows", "--client", client)
    assert (flow["client"], flow["vip"]) == (client, running.listen)
    assert running.json("flows", "--client", client.rsplit(":", 1)[0])
    assert running.json("flows", "--client", "203.0.113.99") == []
    assert client in running.run("sessions").stdout
    assert client in running.run("flows").stdout
    assert probing.wait(20) == 0
    assert running.json("sessions") == []


@pytest.mark.slow
def test_path_of_the_url_does_not_matter(running: Relayctl) -> None:
    done = running.run("probe", f"http://{running.http}/whip", "--duration", "0.5", "--json")
    assert done.returncode == 0, done.stderr


# judging a report


def report(*, lost: int = 0, lost_down: int = 0, **fields: Any) -> CallReport:
    good = {"heard": True, "state": "connected", "pings_sent": 50}
    return CallReport(
        "http://127.0.0.1/whip/sessions/x",
        ["127.0.0.1:3478"],
        uplink={"sent": 500, "lost": lost},
        downlink={"received": 500, "lost": lost_down},
        **{**good, **fields},
    )


@pytest.mark.parametrize(
    ("made", "max_loss", "problem"),
    [
        pytest.param(report(), 0.0, None, id="no loss"),
        pytest.param(report(heard=False), 100.0, "the echo carried no tone", id="silence"),
        pytest.param(
            report(state="failed"), 100.0, "the call ended by itself: connection failed", id="ended"
        ),
        pytest.param(report(silent_s=1.0), 0.0, None, id="as silent as allowed"),
        pytest.param(report(silent_s=1.5), 100.0, "the echo fell silent 1.5 s before the end", id="cut off"),
        pytest.param(
            report(pings_overdue=3), 100.0, "3 of 50 pings had no answer within 1 s", id="pings overdue"
        ),
        pytest.param(
            report(lost=1),
            0.0,
            "1 of 1000 packets lost (0.10 %, --max-loss is 0 %)",
            id="a packet up",
        ),
        pytest.param(
            report(lost_down=20),
            1.5,
            "20 of 1000 packets lost (2.00 %, --max-loss is 1.5 %)",
            id="packets down",
        ),
        pytest.param(report(lost=10, lost_down=10), 2.0, None, id="as many as allowed"),
    ],
)
def test_what_counts_as_a_failed_call(made: CallReport, max_loss: float, problem: str | None) -> None:
    assert find_problem(made, max_loss) == problem


# no call


@pytest.mark.slow
def test_unreachable_signaling_is_exit_code_5_naming_it(relayctl: Relayctl) -> None:
    done = relayctl.run("probe", relayctl.url)
    assert done.returncode == EXIT_CALL_FAILED
    assert f"relayctl: {relayctl.url}whip cannot be reached (" in done.stderr
    assert "Connect" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_token_is_asked_for_and_taken_from_flag_or_environment(relayctl: Relayctl, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f"[transceiver]\nbearer_token_file = '{tmp_path}/token'")
    relayctl.start("--config", str(config))
    assert relayctl.status()["transceivers"]["bearer_token_file"] == f"{tmp_path}/token"
    assert f"bearer token in {tmp_path}/token" in relayctl.run("status").stdout
    token = (tmp_path / "token").read_text().strip()
    for wrong in ((), ("--token", token + "x"), ("--token", token[:-1])):
        done = relayctl.run("probe", relayctl.url, "--duration", "0.5", *wrong)
        assert done.returncode == EXIT_CALL_FAILED
        assert f"relayctl: {relayctl.url}whip answered 401: a bearer token is needed" in done.stderr
    shown = relayctl.run("probe", relayctl.url, "--duration", "0.5", "--token", token)
    assert shown.returncode == 0, shown.stderr
    assert token not in shown.stdout
    inherited = relayctl.run("probe", relayctl.url, "--duration", "0.5", RELAYCTL_BEARER_TOKEN=token)
    assert inherited.returncode == 0, inherited.stderr
    assert token not in relayctl.log()


@pytest.mark.slow
def test_dead_relay_is_exit_code_5_and_says_where_to_look(relayctl: Relayctl) -> None:
    relayctl.start("--role", "transceivers")
    done = relayctl.run("probe", relayctl.url)
    assert done.returncode == EXIT_CALL_FAILED
    assert "relayctl: call not up within 15 s: waiting for DTLS" in done.stderr
    assert f"is {relayctl.listen} reachable by UDP?" in done.stderr
    assert "relayctl status" in done.stderr
    assert relayctl.json("sessions") == [], "a call that failed is hung up"


@pytest.mark.slow
def test_certificate_is_verified_unless_insecure(relayctl: Relayctl, tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    config = tmp_path / "c.toml"
    config.write_text(f"[transceiver]\ntls_cert = '{cert}'\ntls_key = '{key}'")
    relayctl.start("--config", str(config))
    url = f"https://{relayctl.http}/"
    assert relayctl.status()["transceivers"]["http"] == url
    refused = relayctl.run("probe", url, "--duration", "0.5")
    assert refused.returncode == EXIT_CALL_FAILED
    assert "certificate" in refused.stderr
    trusted = relayctl.run("probe", url, "--duration", "0.5", "--insecure")
    assert trusted.returncode == 0, trusted.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        pytest.param("127.0.0.1:{port}", id="no scheme"),
        pytest.param("localhost", id="host only"),
        pytest.param("ftp://127.0.0.1:{port}/", id="other scheme"),
        pytest.param("http://127.0.0.1:99999/", id="no port has that number"),
        pytest.param("http://", id="no host"),
    ],
)
def test_url_that_cannot_be_called_is_told_as_it_was_given(relayctl: Relayctl, url: str) -> None:
    url = url.format(port=free_tcp().rpartition(":")[2])
    done = relayctl.run("probe", url)
    assert done.returncode in (EXIT_USAGE, EXIT_CALL_FAILED)
    assert url.rstrip("/") in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("--duration", "0.1"), ("--max-loss", "101"), ("--max-loss", "-1"), ("--duration", "long")]
)
def test_wrong_option_is_exit_code_2(relayctl: Relayctl, arguments: tuple[str, ...]) -> None:
    done = relayctl.run("probe", relayctl.url, *arguments)
    assert done.returncode == EXIT_USAGE
    assert arguments[0] in done.stderr


@pytest.fixture
def answering() -> Iterator[Answer]:
    """Another HTTP server than ours: answers every POST with the same."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, body: str, **headers: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # http.server's name
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "body", "headers", "words"),
    [
        pytest.param(200, "<html>welcome</html>", {}, "answered 200", id="a web page"),
        pytest.param(404, "", {}, "answered 404: Not Found", id="no WHIP there"),
        pytest.param(503, "no room\n", {}, "answered 503: no room", id="full"),
        pytest.param(201, "v=0\r\n", {}, "Location", id="no Location"),
        pytest.param(201, "welcome", {"Location": "/x"}, "answer", id="answer is no SDP"),
        pytest.param(
            201,
            "a=candidate:1 1 udp 1 host.local\r\n",
            {"Location": "/x"},
            "answer",
            id="candidate cut short",
        ),
        pytest.param(
            201,
            "a=candidate:1 1 udp 1 host.local 5000 typ host\r\n",
            {"Location": "/x"},
            "answer",
            id="candidate is a name",
        ),
    ],
)
def test_server_that_is_not_ours_is_exit_code_5_without_traceback(
    relayctl: Relayctl,
    answering: Answer,
    status: int,
    body: str,
    headers: dict[str, str],
    words: str,
) -> None:
    url = answering(status, body, **headers)
    done = relayctl.run("probe", url)
    assert done.returncode == EXIT_CALL_FAILED
    assert f"{url}whip" in done.stderr
    assert words in done.stderr
