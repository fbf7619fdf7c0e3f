"""Where Redis is: URLs, and errors that name the field and the way out."""

from pathlib import Path
from typing import Any

import pytest

from fleet.config import RedisKind, RedisUrl
from fleet.settings import AgentSettings
from host.errors import ConfigError
from tests.cli.certificate import make_certificate
from tests.fleet.bench import KEYS, config


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("redis://10.0.0.9", (RedisKind.STANDALONE, False, (("10.0.0.9", 6379),), "", 0)),
        ("redis://10.0.0.9:7000/3", (RedisKind.STANDALONE, False, (("10.0.0.9", 7000),), "", 3)),
        ("redis://10.0.0.9/", (RedisKind.STANDALONE, False, (("10.0.0.9", 6379),), "", 0)),
        ("rediss://cache.example.org:1", (RedisKind.STANDALONE, True, (("cache.example.org", 1),), "", 0)),
        ("redis://[2001:db8::1]:7000", (RedisKind.STANDALONE, False, (("2001:db8::1", 7000),), "", 0)),
        ("redis+sentinel://a/main", (RedisKind.SENTINEL, False, (("a", 26379),), "main", 0)),
        ("rediss+sentinel://a:1,b:2/main/4", (RedisKind.SENTINEL, True, (("a", 1), ("b", 2)), "main", 4)),
        ("redis+cluster://a:1,[::1]:2", (RedisKind.CLUSTER, False, (("a", 1), ("::1", 2)), "", 0)),
        ("rediss+cluster://a/", (RedisKind.CLUSTER, True, (("a", 6379),), "", 0)),
    ],
)
def test_urls(url: str, parsed: tuple[object, ...]) -> None:
    assert RedisUrl.parse(url) == parsed


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("10.0.0.9:6379", "redis://HOST"),
        ("http://10.0.0.9", "redis://HOST"),
        ("redis+proxy://10.0.0.9", "redis://HOST"),
        ("rediss+sentinel+cluster://a", "redis://HOST"),
        ("redis://", "HOST:PORT"),
        ("redis://a:0", "HOST:PORT"),
        ("redis://a:65536", "HOST:PORT"),
        ("redis://a:port", "HOST:PORT"),
        ("redis://::1:6379", "brackets"),
        ("redis://a,b", "redis+sentinel://"),
        ("redis://a/main", "no number of a database"),
        ("redis://a/-1", "no number of a database"),
        ("redis://a/1/2", "no number of a database"),
        ("redis://a?timeout=1", "each option is a key of [redis]"),
        ("redis://a/0#b", "each option is a key of [redis]"),
        ("redis://:secret@a", "password_file"),
        ("redis://user:secret@a", "password_file"),
        ("redis://user@a", "password_file"),
        ("redis+sentinel://a", "service"),
        ("redis+sentinel://a/", "service"),
        ("redis+sentinel://a/main/b", "no number of a database"),
        ("redis+cluster://a/1", "a Cluster has but one"),
        ("redis+cluster://a,,b", "HOST:PORT"),
        ("redis://a\n", "HOST:PORT"),
    ],
)
def test_urls_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(url)
    assert caught.value.field == "redis.url"
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "options", "field", "words"),
    [
        ("", {"timeout_s": 0.0}, "timeout_s", "0.01 to 5"),
        ("", {"timeout_s": float("nan")}, "timeout_s", "0.01 to 5"),
        ("", {"flow_ttl_s": 29}, "flow_ttl_s", "30 to 86400"),
        ("", {"lease_s": 1.9}, "lease_s", "2 to 300"),
        ("", {"lease_s": float("inf")}, "lease_s", "2 to 300"),
        ("", {"url": 5}, "url", "a string"),
        ("", {"pasword_file": "a"}, "pasword_file", "did you mean 'password_file'?"),
        ("redis://a", {"password_file": "/nonexistent"}, "password_file", "cannot be read"),
        ("redis://a", {"username": "relay"}, "username", "password_file"),
        ("redis://a", {"sentinel_password_file": "/nonexistent"}, "sentinel_password_file", "Sentinels"),
        ("redis://a", {"tls_ca": "/nonexistent"}, "tls_ca", "rediss://"),
        ("redis://a", {"tls_cert": "/nonexistent"}, "tls_cert", "rediss://"),
        ("rediss://a", {"tls_ca": "/nonexistent"}, "tls_ca", "cannot load"),
        ("rediss://a", {"tls_cert": "/nonexistent"}, "tls_cert", "cannot load"),
        ("rediss://a", {"tls_key": "/nonexistent"}, "tls_key", "tls_cert"),
    ],
)
def test_settings_that_are_refused(url: str, options: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(options.pop("url", url), **options)
    assert caught.value.field == f"redis.{field}"
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "mode", "words"), [("secret\n", 0o644, "chmod 600"), (" \n", 0o600, "no password")]
)
def test_password_files_that_are_refused(tmp_path: Path, text: str, mode: int, words: str) -> None:
    file = tmp_path / "password"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(ConfigError, match=words) as caught:
        config("redis://a", password_file=file)
    assert caught.value.field == "redis.password_file"


def test_password_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text("first\n")
    redis = config("redis://a", password_file=file)
    assert redis.read_secrets() == ("first", "")
    file.write_text("second\n")
    assert redis.read_secrets() == ("second", "")


def test_settings_cross_the_channel(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    redis = config("rediss+cluster://a,b", tls_ca=certificate, tls_cert=certificate, tls_key=key, timeout_s=1)
    settings = AgentSettings(
        redis=redis, secrets=redis.read_secrets(), cluster_id=7, keys=KEYS.record_keys(), line_fds=(3, 4)
    )
    crossed = AgentSettings.from_message(settings.to_message())
    assert crossed.redis == redis
    assert crossed.redis.tls_context() is not None
    assert (crossed.cluster_id, crossed.line_fds, crossed.secrets) == (7, (3, 4), ("", ""))
    assert crossed.keys.to_json() == KEYS.record_keys().to_json()
