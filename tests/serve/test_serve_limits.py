"""Requests that are wrong, too much, unwelcome or left alone, and how the server ends."""

import builtins
import json
import os
import signal
import socket
import threading

import httpx
import openai
import pytest
from served import TALK, TOKEN, USER, Gate, axis_file, serving, settings, until

from keel.errors import ConfigError, ModelError
from keel.serve import command
from keel.serve import run as run_server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("limits")


@pytest.fixture(scope="module")
def served(folder):
    limits = {"max_body_bytes": 4096, "body_timeout_s": 0.5, "max_length": 64}
    with serving(settings(folder, limits=limits, more={"hosts": ("model.lan",)})) as running:
        yield running


def chat(**changes):
    return {"model": "tiny", "messages": USER} | changes


DEEP = b'{"model":"tiny","messages":' + b"[" * 2000 + b"]" * 2000 + b"}"
WRONG = [
    (b"{", 400, "the body is not JSON"), (b"", 400, "the body is not JSON"), (b"\xff\xfe", 400, "the body is not JSON"),
    (b"[]", 400, "the body is not as it has to be"), (DEEP, 400, "recursion limit exceeded"),
    (b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}', 400, "the body is not JSON"),
    (chat(model="other"), 404, "there is no model 'other' here; this server has 'tiny'"),
    (chat(tools=[]), 400, "this server has no field tools"), (chat(temperature="1"), 400, "temperature is not as it"),
    (chat(temperature=-1), 400, "temperature is not as"), (chat(n=0), 400, "n is not as it has to be"),
    (chat(n=True), 400, "n is not as it has to be"), (chat(n=5), 400, "5 responses to one request; this server gives"),
    (chat(max_tokens=0), 400, "max_tokens is not"), (chat(max_tokens=25), 400, "25 tokens are asked for; this server"),
    (chat(max_tokens=60), 400, "tokens and 60 are asked for; prompt and response together have at most 64 here"),
    (chat(messages=[{"role": "user", "content": "cat " * 70}]), 400, "tokens; prompt and response together have at"),
    (chat(messages=[]), 400, "messages is not as it has to be"),
    (chat(messages=TALK * 3), 400, "12 messages; this server takes at most 8"),
    (chat(messages=[{"role": "tool", "content": "x"}]), 400, "messages.0.role is not as it has to be"),
    (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "messages.0.content.0.type is not"),
    (chat(messages=[{"role": "user", "content": " "}]), 400, "messages.0.content is empty; only the assistant's may"),
    (chat(messages=[{"role": "user"}]), 400, "messages.0.content is empty; only the assistant's may be"),
    (chat(messages=TALK[:3]), 400, "the last turn of the prompt is the assistant's. A prompt ends with"),
    (chat(messages=[{"role": "assistant", "tool_calls": [{}]}, *USER]), 400, "no field messages.0.tool_calls"),
    (chat(messages=[{"role": "user", "content": "a\0b"}]), 400, "holds a NUL character"),
    (chat(stop=[""]), 400, "stop"),
    (chat(stop=["a"] * 17), 400, "stop is not as it has to be: List should have at most 16"),
    (chat(stop=5), 400, "stop is not as it has to be: Input should be a valid string or input should be a valid arr"),
    (chat(store=True), 400, "no field store"), (chat(presence_penalty=0.5), 400, "presence_penalty is not"),
    (b'{"model":"tiny","messages":[{"role":"user","content":"a"}],"temperature":NaN}', 400, "be a finite number"),
    (chat(top_logprobs=3), 400, "top_logprobs"),
    (chat(seed=2**63), 400, "seed is not"), (chat(response_format={"type": "json_object"}), 400, "response_format"),
    (chat(axis={"cap": "none such"}), 400, "does not have it. It has: floor, beside"),
    (chat(axis={"cap": {}}), 400, "bounds of a row without any number"),
    (chat(axis={"cap": {"lower": "x"}}), 400, "axis.cap.lower is not as it has to be: Input should be a valid number"),
    (chat(axis={"steer": {"strength": 1, "layers": [-1]}}), 400, "axis.steer.layers.0 is not as it has to be"),
    (chat(axis={"cap": {"lower": 1, "layers": [1, 1]}}), 400,
     "axis.cap.layers is not as it has to be: a block may be named once only"),
    (chat(axis={"cap": {"lower": 2, "upper": 1}}), 400, "axis.cap leaves no room: lower=2.0 is above upper=1.0"),
    (chat(axis={"steer": {"strength": 1, "layers": [7]}}), 400, "a row cannot be acted on behind block 7"),
    (chat(axis={"steer": 1e9}), 400, "axis.steer is not as it has to be"),
    (chat(axis={"x": 1}), 400, "no field axis.x"),
    (b'{"model":"tiny","messages":[{"role":"user","content":"a"}],"axis":{"steer":NaN}}', 400, "axis.steer is not"),
    (b" " * 5000, 413, "a request of 5000 bytes; this server reads at most 4096"),
]


@pytest.mark.parametrize(("body", "status", "what"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said_in_the_shape_of_openai(served, body, status, what):
    answer = served.post(body)
    problem = answer.json()["error"]
    assert answer.status_code == status and what in problem["message"]
    assert problem["type"] == ("not_found_error" if status == 404 else "invalid_request_error") and problem["code"]


def test_the_official_client_knows_the_errors(served):
    with pytest.raises(openai.BadRequestError, match="temperature is not as it has to be"):
        served.chat(temperature=-1)
    with pytest.raises(openai.NotFoundError, match="no model is called 'other'; see /v1/models"):
        served.client.models.retrieve("other")


def test_completions_are_checked_too(served):
    for prompt, what in (([], "a list of prompts without any prompt"), (["a"] * 5, "5 responses to one request"),
                         (["cat " * 90], "prompt and response together"), ("a\0", "holds a NUL character"),
                         ([[1, 2]], "prompt.0 is not as it has to be")):
        answer = served.post({"model": "tiny", "prompt": prompt}, "/v1/completions")
        assert answer.status_code == 400 and what in answer.json()["error"]["message"]
    for asked, param in (({"prompt": ["a"] * 5}, "prompt"), ({"prompt": ["a"], "n": 5}, "n")):
        assert served.post({"model": "tiny"} | asked, "/v1/completions").json()["error"]["param"] == param
    assert "no field echo" in served.post({"model": "tiny", "prompt": "a", "echo": True}, "/v1/completions").text


def sent(served, *parts):
    """Bytes on a bare socket, and what comes back."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as bare:
        for part in parts:
            bare.sendall(part)
        found = b""
        while (part := bare.recv(65536)) and not (found := found + part).endswith(b"}"):
            pass
        return found


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"


def test_a_body_without_a_length_is_read_up_to_the_limit_and_a_slow_one_not_for_ever(served):
    chunk = b"800\r\n" + b" " * 2048 + b"\r\n"
    answer = sent(served, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk, chunk)
    assert b" 413 " in answer and b"longer than 4096 bytes, which is all this server reads" in answer
    slow = sent(served, HEAD + b"Content-Length: 100\r\n\r\n{")
    assert b" 408 " in slow and b"did not arrive in time" in slow
    assert b" 400 " in sent(served, b"NO HTTP AT ALL\r\n\r\n")


def test_without_the_token_nothing_is_answered(served):
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": "Bearer"},
                    {"authorization": f"Basic {TOKEN}"}, {"authorization": f"Bearer {TOKEN}x"}):
        for path in ("/v1/models", "/v1/axis", "/v1/nothing"):
            answer = httpx.get(served.address + path, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key" and TOKEN not in answer.text
    with pytest.raises(openai.AuthenticationError, match="the token is missing or wrong"):
        openai.OpenAI(base_url=f"{served.address}/v1", api_key="x" * 20, max_retries=0).models.list()


def test_requests_to_another_host_are_refused_before_anything_else(served):
    for host, status in (("evil.example", 400), ("evil.example:80", 400), ("", 400), ("localhost", 200),
                         (f"127.0.0.1:{served.port}", 200), ("[::1]:80", 200), ("MODEL.lan:9", 200),
                         ("127.0.0.1.evil.example", 400)):
        answer = served.http.get("/v1/models", headers={"host": host})
        assert answer.status_code == status
        assert status == 200 or "addressed to another host" in answer.text


def test_other_addresses_and_methods_are_told_so(served):
    assert served.http.get("/nothing").json()["error"]["message"] == "there is nothing at this address"
    assert served.http.get("/v1/completions").json()["error"]["message"] == "this address takes another method"
    assert served.http.get("/docs").status_code == served.http.get("/openapi.json").status_code == 404


def test_pages_answer_head_as_get_without_a_body(served):
    for path in ("/", "/chat.js", "/healthz"):
        got, head = served.http.get(path), served.http.head(path)
        assert head.status_code == got.status_code == 200 and head.content == b"" and got.content
        assert head.headers["content-length"] == got.headers["content-length"]


def test_no_other_page_may_read_answers_unless_the_operator_names_it(served, folder):
    asked = {"origin": "http://page.example", "access-control-request-method": "POST",
             "access-control-request-headers": "authorization"}
    assert "access-control-allow-origin" not in served.http.options("/v1/models", headers=asked).headers
    with serving(settings(folder, more={"origins": ("http://page.example",)})) as open_one:
        allowed = httpx.options(f"{open_one.address}/v1/models", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "http://page.example"
        other = httpx.options(f"{open_one.address}/v1/models", headers=asked | {"origin": "http://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_the_queue_has_an_end_and_who_goes_away_makes_room_at_once(served):
    gate, answers = Gate(served.engine), []
    body = chat(n=4, max_tokens=20, seed=3)
    waiting = [threading.Thread(target=lambda: answers.append(served.post(body))) for _ in range(2)]
    for thread in waiting:
        thread.start()
    assert until(lambda: served.engine.counts == (4, 4))
    full = served.post(chat())
    assert full.status_code == 429 and full.headers["retry-after"] == "1" and "try again soon" in full.text
    gate.off()
    for thread in waiting:
        thread.join(20)
    assert [answer.status_code for answer in answers] == [200, 200] and served.idle()
    assert answers[0].json()["choices"] == answers[1].json()["choices"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_rows_while_others_go_on(served, stream):
    gate = Gate(served.engine)
    found = []
    other = threading.Thread(target=lambda: found.append(served.post(chat(seed=7))))
    other.start()
    assert until(lambda: served.engine.counts == (1, 0))
    body = json.dumps(chat(n=3, stream=stream, axis={"steer": 2.0})).encode()
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as bare:
        bare.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert until(lambda: served.engine.counts in ((1, 3), (4, 0)))
        if served.engine.counts == (1, 3):
            gate.let(1)  # who waits joins between two steps
        assert until(lambda: served.engine.counts in ((4, 0), (3, 0)))  # the first one may have ended with that step
    assert until(lambda: (gate.let(1), served.engine.counts[0] <= 1)[1])
    gate.off()
    other.join(20)
    assert found[0].json()["choices"] == served.post(chat(seed=7)).json()["choices"] and served.idle()


def test_what_takes_too_long_is_given_up(folder):
    with serving(settings(folder, limits={"timeout_s": 0.3})) as hasty:
        gate = Gate(hasty.engine)
        timer = threading.Timer(0.5, gate.off)
        timer.start()
        late = hasty.post(chat())
        assert late.status_code == 504 and "took longer than this server allows" in late.text and hasty.idle()


def test_a_model_that_breaks_says_so_and_the_next_request_gets_a_fresh_desk(served):
    def burst():
        raise MemoryError("out of memory\nand more")

    served.engine._desk.step = burst
    answer = served.post(chat())
    assert answer.status_code == 500 and "the model failed: MemoryError: out of memory" in answer.text
    assert answer.json()["error"]["type"] == "server_error"
    assert served.post(chat()).status_code == 200 and served.idle()


def test_a_problem_in_the_middle_of_a_stream_ends_it_with_an_error(served):
    gate = Gate(served.engine)
    stream = served.chat(stream=True)
    first = next(stream)
    assert first.choices[0].delta.role == "assistant"

    def burst():
        raise RuntimeError("gone")

    gate._step = burst
    gate.let(1)
    with pytest.raises(openai.APIError, match="the model failed: RuntimeError: gone"):
        list(stream)
    assert served.post(chat()).status_code == 200


def test_numbers_that_are_not_finite_are_an_error_and_no_json_of_nan(served):
    answer = served.post(chat(axis={"steer": {"strength": 1e6, "unit": "norm_fraction"}}))
    weight = served.engine._policy.model.norm.weight
    kept = weight.data.clone()
    weight.data.fill_(float("nan"))
    try:
        broken = served.post(chat())
    finally:
        weight.data.copy_(kept)
    assert answer.status_code == 200
    assert broken.status_code == 500 and "no longer finite; steer with a smaller strength" in broken.text
    assert served.post(chat()).status_code == 200 and served.idle()


def test_stopping_lets_running_requests_finish_and_takes_no_new_ones(folder):
    with serving(settings(folder)) as ending:
        gate, answers = Gate(ending.engine), []
        running = threading.Thread(target=lambda: answers.append(ending.post(chat())))
        running.start()
        assert until(lambda: ending.engine.counts == (1, 0))
        ending.engine.close(5.0)
        refused = ending.post(chat())
        assert refused.status_code == 503 and "takes no more requests" in refused.text
        assert ending.http.get("/healthz").json()["status"] == "closing"
        gate.off()
        running.join(20)
        assert answers[0].status_code == 200 and until(lambda: not ending.engine.alive)


def test_what_does_not_finish_in_the_grace_is_told(folder):
    with serving(settings(folder)) as ending:
        gate = Gate(ending.engine)
        stream = ending.chat(stream=True)
        next(stream)
        ending.engine.close(0.0)
        gate.off()
        with pytest.raises(openai.APIError, match="the server is being stopped; this request was not finished"):
            list(stream)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def test_a_signal_ends_the_command_and_the_token_is_shown_once(folder, capsys, monkeypatch):
    monkeypatch.delenv("KEEL_SERVE_TOKEN", raising=False)
    port, seen = free_port(), []

    def ask():
        address = f"http://127.0.0.1:{port}"
        until(lambda: _answers(f"{address}/healthz"))
        seen.append(httpx.get(f"{address}/v1/models", headers={"authorization": "Bearer x"}).status_code)
        os.kill(os.getpid(), signal.SIGTERM)

    client = threading.Thread(target=ask)
    client.start()
    before = signal.getsignal(signal.SIGTERM)
    run_server(settings(folder, more={"port": port}))
    client.join(10)
    told = capsys.readouterr()
    assert seen == [401] and signal.getsignal(signal.SIGTERM) == before and told.out == ""
    token = told.err.split("the token of this run is ")[1].split()[0]
    assert len(token) >= 40 and told.err.count(token) == 2 and f"http://127.0.0.1:{port}/#token={token}" in told.err
    assert told.err.rstrip().endswith("keel serve: stopped")


def _answers(address):
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


def test_a_token_of_the_environment_is_taken_and_never_shown(monkeypatch):
    monkeypatch.setenv("KEEL_SERVE_TOKEN", TOKEN)
    assert command._token("KEEL_SERVE_TOKEN") == (TOKEN, False)
    for bad in ("tiny", "with a blank in the middle", "\u00e9" * 20):
        monkeypatch.setenv("KEEL_SERVE_TOKEN", bad)
        with pytest.raises(ConfigError, match="is shorter than 16 characters, or has others than printable") as error:
            command._token("KEEL_SERVE_TOKEN")
        assert bad not in str(error.value)


def test_listening_everywhere_needs_names(folder):
    with pytest.raises(ValueError, match="listens on every address, and hosts is empty"):
        settings(folder, more={"host": "0.0.0.0"})
    assert settings(folder, more={"host": "::", "hosts": ("Model.lan",)}).known_hosts[-1] == "model.lan"


def test_who_opens_it_to_other_machines_is_told_what_that_means(folder, capsys):
    command._announce(settings(folder, more={"host": "0.0.0.0", "hosts": ("model.lan",)}), 80, None)
    told = capsys.readouterr().err
    assert "http://model.lan:80/v1" in told and "travel readable; put TLS in front" in told
    command._announce(settings(folder, more={"host": "::1"}), 80, None)
    told = capsys.readouterr().err
    assert "http://[::1]:80/" in told and "TLS" not in told


def test_without_the_extra_the_command_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name == "fastapi":
            raise ImportError("no fastapi", name="fastapi")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"needs packages that are not installed \(fastapi\)") as error:
        command._library()
    assert 'pip install "keel-rlhf[serve]"' in str(error.value)


@pytest.mark.parametrize(("shape", "what"), [({"layers": 3}, "the axis has 3 blocks, the model 2"),
                                             ({"width": 8}, "the axis is 8 wide, the model's stream 16")])
def test_an_axis_of_another_model_ends_the_command_at_its_start(folder, tmp_path, capsys, shape, what):
    port = free_port()
    cfg = settings(folder, more={"port": port})
    other = axis_file(tmp_path / "other.safetensors", **shape)
    with pytest.raises(ModelError, match=what):
        run_server(cfg.model_copy(update={"axis": cfg.axis.model_copy(update={"path": other})}))
    assert "keel serve: tiny at" not in capsys.readouterr().err
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_where_nobody_can_listen_port_and_host_are_named(folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on port {port} of host '127.0.0.1'") as error:
            run_server(settings(folder, more={"port": port}))
    assert "Another program listens there; --port 0 takes a free one." in str(error.value)
    for host in ("no-such-host.invalid", "a" * 70 + ".invalid", "203.0.113.7"):
        with pytest.raises(ConfigError, match=f"of host '{host}'") as error:
            run_server(settings(folder, more={"host": host}))
        assert "Name this machine by its host name" in str(error.value)
