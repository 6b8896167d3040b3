"""The HTTP client against a real server that is slow, busy, broken, or none at all."""

import logging
import socket
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from cli.serving import Reply, Server

from keel.config import Config
from keel.endpoint import EndpointConfig, post_json
from keel.errors import ConfigError, EndpointError, KeelError

TOKEN = "s3cret-t0ken"


@pytest.fixture
def waits(monkeypatch):
    """Seconds that the client would have slept, which it does not."""
    slept: list[float] = []
    monkeypatch.setattr("keel.endpoint.time.sleep", slept.append)
    return slept


class Asks(Config):
    judge: EndpointConfig | None = None


def endpoint(url: str, **changes) -> EndpointConfig:
    return EndpointConfig(**({"url": url, "timeout_s": 5.0, "retries": 3, "backoff_s": 0.01} | changes))


def refusal(url: str, kind: type[KeelError] = EndpointError, **changes) -> str:
    """What a request that must fail says; where and what, then the remedy."""
    with pytest.raises(kind) as caught:
        post_json(endpoint(url, **changes), {"x": 1})
    assert caught.value.where and caught.value.remedy
    return str(caught.value)


def test_json_goes_out_and_comes_back():
    payload = {"text": 'ünï "quoted" \ud800 lone', "n": [1, 2.5, None]}
    with Server(Reply({"heard": True})) as server:
        assert post_json(endpoint(server.url), payload) == {"heard": True}
    (path, headers, body), = server.asked
    assert path == "/score" and body == payload
    assert headers["content-type"] == "application/json" and "authorization" not in headers


def test_the_token_is_sent_and_never_shown(monkeypatch, caplog):
    """Not in what the server echoes, not in errors and their causes, not in logs, not in the saved settings."""
    monkeypatch.setenv("KEEL_TEST_TOKEN", f"{TOKEN}\n")
    caplog.set_level(logging.DEBUG)
    echo = Reply(f"bad token {TOKEN}!".encode(), status=401)
    with Server(Reply([1]), echo, Reply(f"<p>{TOKEN}</p>".encode()), Reply(TOKEN.encode(), status=500)) as server:
        asked = endpoint(server.url, token_env="KEEL_TEST_TOKEN", retries=0)
        assert post_json(asked, {}) == [1]
        shown = [caplog.text, asked.to_toml(), repr(asked)]
        for said in ("HTTP 401: bad token [token]!", "is not JSON: <p>[token]</p>", "HTTP 500: [token]"):
            with pytest.raises(EndpointError) as caught:
                post_json(asked, {})
            assert said in str(caught.value)
            shown.append("".join(traceback.format_exception(caught.value)))
    assert [headers["authorization"] for _, headers, _ in server.asked] == [f"Bearer {TOKEN}"] * 4
    assert "127.0.0.1" in caplog.text and not [text for text in [*shown, caplog.text] if TOKEN in text]


@pytest.mark.parametrize("value, fragment", [
    (None, "KEEL_TEST_TOKEN holds no token"), (" ", "KEEL_TEST_TOKEN holds no token"),
    (f"{TOKEN} {TOKEN}", "has spaces or letters that no HTTP header may hold"), (f"{TOKEN}é", "has spaces or letters")])
def test_a_token_that_is_none(monkeypatch, value, fragment):
    monkeypatch.delenv("KEEL_TEST_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("KEEL_TEST_TOKEN", value)
    said = refusal("http://127.0.0.1:1/", ConfigError, token_env="KEEL_TEST_TOKEN")
    assert fragment in said and TOKEN not in said


def test_an_error_of_the_server_is_asked_again_ever_later(waits):
    with Server(Reply(b"", 500), Reply(b"", 502), Reply(b"", 503), Reply("done")) as server:
        assert post_json(endpoint(server.url), {"x": 1}) == "done"
    assert waits == [0.01, 0.02, 0.04] and [body for _, _, body in server.asked] == [{"x": 1}] * 4


def test_backing_off_has_a_longest_wait(waits):
    with Server(Reply(b"", 500)) as server:
        refusal(server.url, backoff_s=4.0, longest_wait_s=10.0)
    assert waits == [4.0, 8.0, 10.0]


def test_too_many_requests_waits_as_long_as_asked(waits):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    busy = [Reply(b"", 429, {"retry-after": asked} if asked else {}) for asked in ("7", later, past, "soon", None)]
    with Server(*busy, Reply("done")) as server:
        assert post_json(endpoint(server.url, retries=5, backoff_s=0.5), {}) == "done"
    assert waits[0] == 7 and 27 < waits[1] <= 30 and waits[2:] == [0, 4.0, 8.0]


def test_a_server_that_asks_for_too_much_patience(waits):
    with Server(Reply(b"", 429, {"retry-after": "3600"})) as server:
        said = refusal(server.url, longest_wait_s=9)
    assert "the server asks to wait 3600 s, longest_wait_s is 9" in said and not waits and len(server.asked) == 1


def test_a_time_out_is_asked_again(waits):
    with Server(Reply(silent=True), Reply("done")) as server:
        assert post_json(endpoint(server.url, timeout_s=0.1), {}) == "done"
    with Server(Reply(silent=True)) as server:
        said = refusal(server.url, timeout_s=0.1, retries=1)
    assert "no usable answer in 2 attempts; the last one gave ReadTimeout: timed out" in said
    assert waits == [0.01, 0.01]


def test_nobody_there(waits):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        said = refusal(f"http://127.0.0.1:{taken.getsockname()[1]}/?q=hidden")
    assert "in 4 attempts; the last one gave ConnectError" in said and "hidden" not in said and len(waits) == 3


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Server(Reply("done")) as server:
        assert post_json(endpoint(server.url, retries=0), {}) == "done"


@pytest.mark.parametrize("status", [301, 400, 401, 404, 422])
def test_a_refusal_is_not_asked_again(status, waits):
    page = Reply(b"no \x1b[31m field\n'items'" + b"x" * 5000, status, {"location": "http://127.0.0.1:1/"})
    with Server(page) as server:
        said = refusal(server.url)
    assert f"the server refused the request with HTTP {status}: no [31m field 'items'xxx" in said
    assert len(server.asked) == 1 and not waits and len(said) < 600


def test_the_last_answer_is_what_is_reported(waits):
    with Server(Reply(b"", 503), Reply(b"out of memory", 500)) as server:
        said = refusal(server.url, retries=1)
    assert "in 2 attempts; the last one gave HTTP 500: out of memory" in said
    with Server(Reply(b"", 500)) as server:
        assert "in 1 attempts; the last one gave HTTP 500: (nothing)" in refusal(server.url, retries=0)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"", b'{"scores": [1.0', b"\xff\xfe\x00", b"[" * 100_000])
def test_an_answer_that_is_not_json(body, waits):
    with Server(Reply(body)) as server:
        assert "the answer is not JSON: " in refusal(server.url)
    assert len(server.asked) == 1


@pytest.mark.parametrize("url", ["ftp://host/x", "host/x", "http://", "http://a b/", "http://ü/", "http://a:0/"])
def test_an_address_that_is_none(url):
    with pytest.raises(ConfigError, match="url must be a plain address that begins with https://"):
        EndpointConfig.checked({"url": url})


def test_an_address_that_only_looks_like_one():
    with pytest.raises(ConfigError, match="Port out of range"):
        EndpointConfig.checked({"url": "http://a:99999"})
    assert "no such address: Invalid IPv4 address" in refusal("http://999.1.1.1/", ConfigError)


def test_a_token_does_not_travel_readable():
    for url in ("http://example.org/", "http://10.0.0.1:8000/", "http://localhost.example.org/"):
        EndpointConfig(url=url)
        with pytest.raises(ConfigError, match=r"plain http to another machine .* and token_env is set.* use https"):
            EndpointConfig.checked({"url": url, "token_env": "TOKEN"})
    for url in ("https://example.org/", "http://localhost:1/", "http://127.1.2.3/", "http://[::1]:8000/"):
        EndpointConfig(url=url, token_env="TOKEN")


def test_what_may_be_a_secret_is_not_repeated():
    with pytest.raises(ConfigError, match="url holds a password") as caught:
        Asks.resolve(None, {"judge": f"https://me:{TOKEN}@host/"})
    assert TOKEN not in str(caught.value)
    with pytest.raises(ConfigError, match=r"retries = '.*//\[hidden\]@host") as caught:
        Asks.resolve(None, {"judge": "https://host/", "judge.retries": f"https://me:{TOKEN}@host/"})
    assert TOKEN not in str(caught.value)
    with pytest.raises(ConfigError, match=r"token_env = \[hidden\]: string should match pattern") as caught:
        Asks.resolve(None, {"judge": "https://host/", "judge.token_env": TOKEN})
    assert TOKEN not in str(caught.value)


def test_a_key_in_an_address_would_be_written_to_files():
    for query in ("api_key=1", "access_token=1", "sig=x"):
        with pytest.raises(ConfigError, match="url has what looks like a secret in its query"):
            EndpointConfig.checked({"url": f"https://host/score?{query}"})
    assert EndpointConfig(url="https://host/score?model=small").shown == "https://host/score"


def test_a_date_beyond_all_time_is_no_date(waits):
    beyond = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"
    with Server(Reply(b"", 429, {"retry-after": beyond}), Reply("done")) as server:
        assert post_json(endpoint(server.url, retries=1, backoff_s=0.5), {}) == "done"
    assert waits == [0.5]


def test_an_address_may_stand_for_its_table():
    assert Asks.resolve(None, {"judge": "http://127.0.0.1:1/"}).judge == EndpointConfig(url="http://127.0.0.1:1/")
    assert Asks.resolve(None, {"judge": "none"}).judge is None
