"""The page of sample.py --web: what it is told is what the model computes, and nothing else gets
out of its server, however it is asked."""

import functools
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import data
import nanogpt
import sample
from book import inside, play, shelf
from data import runs
from nanogpt.attention import STAGES as ATTENTIVE

ROOT = Path(__file__).parents[1]
SIZES = dict(layers=2, heads=2, width=8, context=3, embed=4)
LETTERS = "abcdefgh "
TEXTS = {  # further runs: what they are of, and in what they differ from the others
    "text": dict(stage="gpt", kv_heads=1, window=5),
    "learned": dict(stage="gpt", position="learned", score_cap=5.0),
    "pairs": dict(stage="gpt"),
    "numpy": dict(stage="mlp", backend="numpy"),
    "numpy-bigram": dict(stage="bigram", backend="numpy"),
}
EVERY = [*nanogpt.STAGES, *TEXTS]
each_run = pytest.mark.parametrize("name", EVERY)


def save(root, name, stage, backend="torch", **given):
    """A run of an untrained model, its weights spread so that what it saw matters."""
    torch.manual_seed(1)
    kind = "text" if name in ("text", "learned") else "lines"
    tokenizer = data.CharTokenizer(LETTERS)
    if name == "pairs":
        tokenizer = data.BytePairTokenizer.train(["ab abc ab é🙂"], 270)
    sizes = {n: SIZES[n] for n in nanogpt.sizes(stage, backend) if n in SIZES} | given
    model = nanogpt.build(stage, tokenizer.vocab_size, 12, backend, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    config = {"model": stage, "backend": backend, "block_size": 12, "sizes": sizes,
              "data": "/somewhere/secret/letters.txt", "kind": kind, "separated": kind == "lines"}
    (root / name).mkdir(parents=True)
    runs.write_json(root / name / "config.json", config)
    runs.save_checkpoint(root / name / "best.pt", {
        "config": config, "tokenizer": tokenizer.to_dict(), "model": model.state_dict(),
        "progress": {"val_loss": 2.5},
    })


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of runs: of every stage, and one deeper, and what is no run to write with."""
    root = tmp_path_factory.mktemp("play") / "runs"
    for name in EVERY:
        save(root, name, **TEXTS.get(name, {"stage": name}))
    save(root, "book/rnn", "rnn")
    for name, config in {"sorter": {"model": "gpt", "data": "x", "finetune": {"kind": "classify"}},
                         "odd": {"model": "unheard of", "data": "x"}, "list": []}.items():
        (root / name).mkdir()
        runs.write_json(root / name / "config.json", config)
        (root / name / "best.pt").write_bytes(b"?")
    (root.parent / "secret.txt").write_text("a secret", "utf-8")
    return root


@pytest.fixture(scope="module")
def server(root):
    args = sample.make_parser().parse_args(["--web", "--device=cpu"])
    server = play.Server(shelf.Shelf(args, root))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.close()
    thread.join()


def send(server, method, path, body=b"", timeout=120, **headers):
    """The status and content of an answer. headers: with _ for -; None leaves one out."""
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=timeout)
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    usual = {"Host": f"127.0.0.1:{server.server_port}", "Content-Type": "application/json",
             "Content-Length": str(len(body))} if method == "POST" else {}
    usual |= {name.replace("_", "-"): value for name, value in headers.items()}
    usual.setdefault("Host", f"127.0.0.1:{server.server_port}")
    link.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in usual.items():
        if value is not None:
            link.putheader(name, value)
    try:
        link.endheaders(body)
        answer = link.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        link.close()


def ask(server, path, **body):
    status, content, _ = send(server, "POST", path, body)
    assert status == 200
    return json.loads(content)


def sampled(server, **body):
    """The lines that a sample comes in."""
    status, content, _ = send(server, "POST", "/sample", body)
    assert status == 200
    return [json.loads(line) for line in content.splitlines()]


def whole(server, **body):
    """The samples of a request, as texts, and what is said at the end."""
    *lines, end = sampled(server, **body)
    found = [""] * body.get("num", 1)
    for line in lines:
        found[line["sample"]] += line["text"] or ""
    return found, end


# What the page is told


def test_the_runs_are_offered_in_the_order_of_the_ladder(server):
    status, content, _ = send(server, "GET", "/runs")
    offered = json.loads(content)["runs"]
    assert status == 200 and {run["name"] for run in offered} == {*EVERY, "book/rnn"}
    order = [nanogpt.STAGES.index(run["stage"]) for run in offered]
    assert order == sorted(order)
    assert b"secret" not in content  # of a path no more than its name


def test_a_new_run_is_offered_when_the_page_is_loaded_again(server, root):
    save(root, "later", "rnn")
    assert send(server, "POST", "/look", {"run": "later"})[0] == 404
    assert b'"later"' in send(server, "GET", "/runs")[1]
    assert ask(server, "/look", run="later")["next"]
    for file in (root / "later").iterdir():
        file.unlink()
    assert send(server, "POST", "/look", {"run": "later"})[0] == 404  # gone, and no crash
    (root / "later").rmdir()
    send(server, "GET", "/runs")


def test_a_run_that_goes_while_the_runs_are_listed(server, monkeypatch):
    read, settings_of = [], shelf.settings_of

    def once(run):
        read.append(run)
        return settings_of(run) if read.count(run) == 1 else None

    monkeypatch.setattr(shelf, "settings_of", once)
    offered = json.loads(send(server, "GET", "/runs")[1])["runs"]
    assert {run["name"] for run in offered} == {*EVERY, "book/rnn"} == set(server.shelf.known)


@each_run
def test_probabilities_are_the_models(server, root, name):
    model, tokenizer = sample.load_run(root / name)
    prompt = "abcab" if name == "learned" else "abc had a cab"
    seen = ask(server, "/look", run=name, prompt=prompt, temperature=0.5, top_k=3)
    begin = sample.starts(prompt, tokenizer, name not in ("text", "learned"))
    with torch.no_grad():
        logits = model(torch.tensor([begin]))[0][0]
    expected = logits[-1].double().softmax(0)
    found = torch.tensor([row["probability"] for row in seen["next"]])
    tokens = [row["token"] for row in seen["next"]]
    assert torch.allclose(found, expected[tokens].float(), atol=1e-6)
    assert len(set(tokens)) == min(40, model.vocab_size)
    assert seen["others"] == model.vocab_size - len(tokens)
    assert found.tolist() == sorted(found.tolist(), reverse=True)
    # what each token cost, by the same logits
    costs = F.cross_entropy(logits[:-1].double(), torch.tensor(begin[1:]), reduction="none")
    told = [token["nats"] for token in seen["tokens"]]
    assert told[0] is None and told[1:] == pytest.approx(costs.tolist(), abs=1e-4)
    assert "".join(token["text"] for token in seen["tokens"]) == prompt


@each_run
def test_chances_are_how_often_a_token_is_drawn(server, root, name):
    model, tokenizer = sample.load_run(root / name)
    separated = name not in ("text", "learned")
    how = dict(temperature=0.7, top_k=5, top_p=0.9)
    seen = ask(server, "/look", run=name, prompt="ab", **how)
    chances = {row["token"]: row["chance"] for row in seen["next"]}
    assert sum(chances.values()) == pytest.approx(1) and sum(map(bool, chances.values())) <= 5
    # the sampler draws a token for every chance from 0 to 1
    with torch.no_grad():
        logits = model(torch.tensor([sample.starts("ab", tokenizer, separated)]))[0][:, -1]
    logits[:, sample.never_drawn(tokenizer, separated)] = -torch.inf
    uniform = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    drawn = sample.draw(logits.expand(5000, -1), uniform, **how).bincount() / 5000
    for token, share in enumerate(drawn.tolist()):
        assert share == pytest.approx(chances.get(token, 0), abs=1e-3)


def test_temperature_0_draws_the_likeliest_alone(server):
    seen = ask(server, "/look", run="rnn", prompt="ab", temperature=0)
    assert sorted(row["chance"] for row in seen["next"])[-2:] == [0, 1]


@each_run
def test_a_streamed_sample_is_that_of_the_command_line(server, root, name):
    model, tokenizer = sample.load_run(root / name)
    separated = name not in ("text", "learned")
    how = dict(temperature=0.8, top_k=6, top_p=0.95, seed=3)
    found, end = whole(server, run=name, prompt="ab", num=3, length=30, **how)
    assert found == sample.texts(model, tokenizer, "ab", 3, 30, separated, **how)
    counts = []
    list(sample.stream(model, tokenizer, "ab", 3, 30, separated, counts=counts, **how))
    assert end["tokens"] == sum(counts)


def test_a_sample_comes_a_token_at_a_time(server):
    lines = sampled(server, run="text", prompt="a", length=40, seed=1)
    assert len(lines) == 40 + 2  # its end, and the sum
    assert lines[-2] == {"sample": 0, "text": None}
    assert lines[0]["text"].startswith("a") and all(len(x["text"]) <= 2 for x in lines[:-2])


def test_a_prompt_with_an_unseen_character_gets_a_sentence(server):
    for path in ("/look", "/sample"):
        assert "never seen 'X'" in ask(server, path, run="rnn", prompt="abX")["error"]


@pytest.mark.parametrize("name, length", [
    *((name, length) for name in EVERY for length in (0, 11, 12, 13, 100)),
    *((name, length) for name in ("rnn", "gpt", "text", "learned") for length in (600, 4000)),
])
def test_prompts_of_any_length_are_read_as_the_sampler_reads_them(root, name, length):
    prompt = ("abcdefgh " * 500)[:length]
    model, tokenizer = sample.load_run(root / name)
    stage, separated = TEXTS.get(name, {"stage": name})["stage"], name not in ("text", "learned")
    seen = inside.look(model, tokenizer, stage, separated, prompt)
    assert 1 <= len(seen["tokens"]) <= inside.SHOWN
    begin = sample.starts(prompt, tokenizer, name not in ("text", "learned"))
    (_, token), = sample.generate(model, [begin], 1, temperature=0)
    # the likeliest; more than one may be, to rounding
    likeliest = {r["token"] for r in seen["next"]
                 if r["probability"] > seen["next"][0]["probability"] - 1e-6}
    assert token in likeliest


# Pictures


def pictures(server, name, prompt):
    """Name -> caption and maps of every picture of a run."""
    found = {}
    for picture in ask(server, "/look", run=name)["pictures"]:
        seen = ask(server, "/look", run=name, prompt=prompt, picture=picture)
        assert seen["picture"] == picture
        found[picture] = seen["maps"]
        for each in seen["maps"]:
            assert len(each["values"]) == len(each["rows"])
            assert {len(row) for row in each["values"]} == {len(each["columns"])}
    return found


def test_a_bigrams_picture_is_its_table(server, root):
    model, tokenizer = sample.load_run(root / "bigram")
    one, = pictures(server, "bigram", "abc")["the table"]
    tokens = [t for t in range(model.vocab_size) if t not in tokenizer.silent]
    expected = model.embedding.weight.softmax(1)[tokens][:, tokens]
    assert torch.allclose(torch.tensor(one["values"]), expected, atol=6e-4)
    assert one["rows"][one["mark"]] == {"text": "c", "name": ""}


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_a_state_is_what_the_model_remembers_after_each_token(server, root, name):
    model, tokenizer = sample.load_run(root / name)
    found = pictures(server, name, "abcd")
    for place, letter in enumerate("hc" if name == "lstm" else "h"):
        for layer, one in enumerate(found[f"the state {letter}"]):
            for t in range(5):
                begin = [data.END, *tokenizer.encode("abcd")][:t + 1]
                _, state = model(torch.tensor([begin]))
                column = torch.tensor([row[t] for row in one["values"]])
                assert torch.allclose(column, state.memories[layer][place][0], atol=6e-4)


@pytest.mark.parametrize("name", ["transformer", "gpt", "text", "learned", "pairs"])
@pytest.mark.parametrize("backend", ["sdpa", "naive"])
def test_attention_is_what_the_formula_gives(root, name, backend):
    model, tokenizer = sample.load_run(root / name)
    nanogpt.attention.use(model, backend)
    begin = sample.starts("abcdefgh", tokenizer, name not in ("text", "learned"))
    seen, attend = [], nanogpt.attention.sdpa

    def formula(q, k, v):
        """Of the queries and keys that every layer has: scores, capped, masked, their softmax."""
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = (q @ k.transpose(2, 3)).double() * q.shape[3] ** -0.5
        if getattr(model, "score_cap", 0):
            scores = model.score_cap * torch.tanh(scores / model.score_cap)
        T, reach = q.shape[2], getattr(model, "reach", model.block_size)
        ages = torch.arange(T)[:, None] - torch.arange(T)
        return scores.masked_fill((ages < 0) | (ages >= reach), -torch.inf).softmax(3)

    found = inside.weights_by

    def both(attend, q, k, v, *mask):
        seen.append(formula(q, k, v))
        return found(attend, q, k, v, *mask)

    inside.weights_by = both
    try:
        with torch.inference_mode():
            weights = inside.weights_of(inside.Reading(model, begin))
    finally:
        inside.weights_by = found
    assert len(weights) == len(seen) == len(model.layers)
    for one, expected in zip(weights, seen):
        assert torch.allclose(one.double(), expected, atol=1e-5)
    assert attend is nanogpt.attention.sdpa


@pytest.mark.parametrize("name", ["transformer", "gpt", "text", "learned"])
def test_attention_in_pictures(server, name):
    long = "abcdefgh " * 20
    for prompt in ("", "abcd", long):
        found = pictures(server, name, prompt)
        last, = found["attention of the last token"]
        assert len(last["values"]) == 4  # two layers of two heads
        for row in last["values"]:
            assert sum(row) == pytest.approx(1, abs=0.01 * len(row) ** 0.5)
        heads = found["attention in layer 1"] + found["attention in layer 2"]
        for one, row in zip(heads, last["values"], strict=True):
            assert one["values"][-1] == row
        if prompt == long and name != "learned":
            assert last["columns"][0] == "earlier"


@each_run
def test_what_a_token_matters_is_seen_no_further_than_the_stage_sees(server, name):
    if name == "numpy-bigram":
        assert "what each token matters" not in pictures(server, name, "a")
        return
    one, = pictures(server, name, "abcdefgh abcdefg")["what each token matters"]
    matters = [value > 0 for value in one["values"][0]]
    reach = {"bigram": 1, "mlp": 3, "numpy": 3, "cnn": 4}.get(name)  # two layers: 2 * 2 tokens
    if reach:
        assert not any(matters[:-reach])
    assert matters[-1]


def test_what_a_token_matters_is_the_divergence_without_it(server, root):
    model, tokenizer = sample.load_run(root / "mlp")
    one, = pictures(server, "mlp", "ab")["what each token matters"]
    numpy, = pictures(server, "numpy", "ab")["what each token matters"]
    tokens = torch.tensor([[data.END, *tokenizer.encode("ab")]])
    with torch.no_grad():
        known = model(tokens)[0][0, -1].double().log_softmax(0)
        for i in range(3):
            x = model.embedding(tokens)
            x[0, i] = 0
            x, _ = model.mix(x, torch.arange(3)[None], [None])
            missing = model.head(x)[0, -1].double().log_softmax(0)
            divergence = F.kl_div(missing, known, reduction="sum", log_target=True)
            assert one["values"][0][i] == pytest.approx(float(divergence), abs=6e-4)
    assert numpy["values"][0] != one["values"][0] and max(numpy["values"][0]) > 0


@each_run
def test_looking_leaves_the_model_as_it_was(root, name):
    model, tokenizer = sample.load_run(root / name)
    tokens = torch.tensor([sample.starts("abc", tokenizer, name not in ("text", "learned"))])
    if name in ATTENTIVE or name in ("text", "learned"):
        nanogpt.attention.use(model, "sdpa")
    before = model(tokens)[0]
    for picture in inside.pictures(model, TEXTS.get(name, {}).get("stage", name)):
        stage = TEXTS.get(name, {}).get("stage", name)
        inside.look(model, tokenizer, stage, True, "abcabc", picture)
    assert torch.equal(model(tokens)[0], before)
    assert "view" not in vars(model) and not getattr(model, "training", False)


# A server that is asked for what it should not give


def test_the_page_and_its_files(server):
    for path, kind in (("/", "html"), ("/play.css", "css"), ("/play.js", "javascript")):
        status, content, headers = send(server, "GET", path)
        assert status == 200 and kind in headers["Content-Type"] and len(content) > 1000
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    page = send(server, "GET", "/")[1].decode()
    assert not re.search(r"https?://|<style|style=|<script>| on\w+=", page)


@pytest.mark.parametrize("host", [
    None, "", "evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example:{}", "127.0.0.1.evil:{}",
    "localhost:{}@evil.example",
])
def test_only_its_own_name_is_answered(server, host):
    host = host and host.format(server.server_port)
    status, content, _ = send(server, "GET", "/runs", Host=host)
    assert status in (400, 403) and b"rnn" not in content
    status, content, _ = send(server, "POST", "/look", {"run": "rnn"}, Host=host)
    assert status in (400, 403) and b"next" not in content


def test_both_of_its_names_are_its_own(server):
    for name in ("localhost", "LOCALHOST", "127.0.0.1"):
        host = f"{name}:{server.server_port}"
        assert send(server, "GET", "/runs", Host=host)[0] == 200
        origin = f"http://{host.lower()}"
        assert send(server, "POST", "/look", {"run": "rnn"}, Origin=origin)[0] == 200


def test_the_port_that_browsers_leave_out(server, monkeypatch):
    monkeypatch.setattr(play, "DEFAULT_PORT", server.server_port)
    with monkeypatch.context() as patched:
        patched.setattr(play.socketserver.TCPServer, "server_bind", lambda one: one.server_address)
        patched.setattr(play.socketserver.TCPServer, "server_activate", lambda one: None)
        other = play.Server(server.shelf, server.server_port)
    other.close()
    assert {"localhost", "127.0.0.1"} < other.hosts
    monkeypatch.setattr(server, "hosts", other.hosts)
    for name in ("localhost", "127.0.0.1"):
        origin = f"http://{name}"
        assert send(server, "POST", "/look", {"run": "rnn"}, Host=name, Origin=origin)[0] == 200
    assert send(server, "GET", "/runs", Host="evil.example")[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost:{}", ""])
def test_pages_from_elsewhere_are_refused(server, origin):
    origin = origin.format(server.server_port)
    for path in ("/look", "/sample"):
        status, content, _ = send(server, "POST", path, {"run": "rnn"}, Origin=origin)
        assert status == 403 and b"text" not in content
    assert send(server, "POST", "/look", {"run": "rnn"}, Content_Type="text/plain")[0] == 415


NOWHERE = [
    "/secret.txt", "/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "//etc/passwd",
    "/etc/passwd", "/play.py", "/inside.py", "/runs/rnn/best.pt", "/.", "/..", "/play.css/",
    "/play.css%00", "/\\..\\secret.txt", "/file:///etc/passwd", "http://127.0.0.1/etc/passwd", "*",
]


@pytest.mark.parametrize("path", NOWHERE)
def test_no_path_leads_to_a_file(server, path):
    status, content, _ = send(server, "GET", path)
    assert status == 404 and b"secret" not in content and b"root:" not in content
    assert send(server, "POST", path, {"run": "rnn"})[0] == 404


@pytest.mark.parametrize("run", [
    "../secret.txt", "..", ".", "", "/etc/passwd", "rnn/", "./rnn", "rnn/best.pt", "sorter", "odd",
    "RNN", "rnn\0", "x" * 1000,
])
def test_a_run_is_one_of_the_list(server, run):
    for path in ("/look", "/sample"):
        status, content, _ = send(server, "POST", path, {"run": run, "prompt": "a"})
        assert status == 404 and b"secret" not in content


def test_methods_it_does_not_have(server):
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "CONNECT", "<b>"):
        status, content, headers = send(server, method, "/")
        assert status in (400, 501) and b"<" not in content.replace(b"<b>", b"")
        assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("body, status", [
    (b"x" * (play.BODY + 1), 413), (b"x" * 1_000_000, 413), (b"{", 400), (b"[]", 400), (b"", 400),
    (b"\xff\xfe", 400), (b"[" * 30_000, 400), (b'{"run": 1' + b"0" * 10_000 + b"}", 400),
    (json.dumps({"run": "rnn", "prompt": "a" * (play.PROMPT + 1)}).encode(), 422),
    (b'{"run": 5}', 422), (b'{"run": "rnn", "prompt": null}', 422),
])
def test_bodies_that_are_too_large_or_none(server, body, status):
    for path in ("/look", "/sample"):
        found, content, _ = send(server, "POST", path, body)
        assert found == status and set(json.loads(content)) == {"error"}


@pytest.mark.parametrize("length", [None, "-1", "x", "9" * 30, "1_0", "٣", "+2"])
def test_a_body_of_no_sensible_length(server, length):
    length = length and length.encode()
    status, _, _ = send(server, "POST", "/look", b"{}", Content_Length=length)
    assert status in (411, 413)


@pytest.mark.parametrize("setting", [
    {"temperature": -1}, {"temperature": float("nan")}, {"temperature": float("inf")},
    {"temperature": 1e999}, {"temperature": "1"}, {"temperature": True}, {"temperature": None},
    {"top_k": -1}, {"top_k": 1.5}, {"top_k": 10**7}, {"top_p": 0}, {"top_p": 1.01},
    {"seed": -1}, {"seed": 2**60}, {"num": 0}, {"num": 21}, {"num": [1]}, {"length": 0},
    {"length": play.TOKENS + 1}, {"num": 20, "length": 101},
])
def test_settings_out_of_bounds_get_a_sentence(server, setting):
    body = {"run": "rnn", "prompt": "a"} | setting
    status, content, _ = send(server, "POST", "/sample", body)
    assert status == 422 and len(json.loads(content)["error"]) > 20


def test_whatever_is_sent_it_answers(server):
    """Requests at random get an answer in JSON or a closed connection, and no place is lost."""
    dice = random.Random(0)
    values = [None, True, -1, 0, 1, 2, 10**30, 0.5, 1e308, [], {}, ["a"], "", "ab", "\0", "\ud800",
              "🙂", "a" * 300, "the state h", *EVERY]
    names = ["run", "prompt", "picture", "temperature", "top_k", "top_p", "seed", "num", "x"]
    for _ in range(150):
        chosen = dice.sample(names, dice.randrange(len(names)))
        body = {"run": dice.choice(EVERY), "length": 3} | {n: dice.choice(values) for n in chosen}
        path = dice.choice(["/look", "/sample"])
        status, content, _ = send(server, "POST", path, body)
        assert status in (200, 404, 422), (path, body, content)
        for line in content.splitlines():
            assert isinstance(json.loads(line), dict)
    for _ in range(60):
        raw = bytes(dice.choices(b"GET POST/look \r\n:\0\xff{}Host", k=dice.randrange(1, 99)))
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as link:
            link.sendall(raw)
            link.shutdown(socket.SHUT_WR)
            while link.recv(65536):
                pass
    assert whole(server, run="rnn", prompt="a", length=5)[1]["tokens"] >= 1
    assert server.places._value == play.PLACES


def test_who_sends_a_byte_at_a_time_is_cut_off(server, monkeypatch):
    """In the middle of the first line, of the headers and of the body, though none waits long."""
    monkeypatch.setattr(play, "PATIENCE", 0.3)
    host = f"Host: 127.0.0.1:{server.server_port}\r\n".encode()
    head = host + b"Content-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
    headers = b"GET / HTTP/1.0\r\n" + host + b"X: "
    for begin in (b"GET /", headers, b"POST /look HTTP/1.0\r\n" + head):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as link:
            link.sendall(begin)
            link.settimeout(0.02)
            assert not trickle(link)
    eventually(lambda: server.threads._value == play.THREADS)
    assert send(server, "GET", "/runs")[0] == 200


def test_who_is_refused_and_goes_on_sending_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(play, "DRAIN", 0.3)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as link:
        link.sendall(b"POST /look HTTP/1.0\r\nHost: evil.example\r\n\r\n")
        link.settimeout(0.02)
        assert trickle(link).startswith(b"HTTP/1.0 403")
    eventually(lambda: server.threads._value == play.THREADS)


def trickle(link):
    """What comes while a byte is sent every now and then, until the server hangs up."""
    come = b""
    for _ in range(3000):
        try:
            link.sendall(b"a")
            come += link.recv(4096)
        except TimeoutError:
            continue
        except ConnectionError:
            return come
        time.sleep(0.02)
    raise AssertionError("it went on listening")


def test_more_connections_than_threads_wait_or_are_cut_off(server, monkeypatch):
    monkeypatch.setattr(play, "PATIENCE", 60)
    idle = [socket.create_connection(("127.0.0.1", server.server_port), timeout=60)
            for _ in range(play.THREADS)]
    eventually(lambda: server.threads._value == 0)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as link:
        with suppress(ConnectionResetError):
            assert link.recv(1) == b""  # its second is over
    for link in idle:
        link.close()
    eventually(lambda: server.threads._value == play.THREADS)
    assert send(server, "GET", "/runs")[0] == 200


# Many at once


def test_ten_clients_at_once_all_get_theirs(server, root):
    """Every one its own sample, whole and right, while others look."""
    model, tokenizer = sample.load_run(root / "text")
    found, looked = {}, []

    def client(seed):
        found[seed], _ = whole(server, run="text", prompt="abc", length=60, seed=seed)
        looked.append(ask(server, "/look", run=EVERY[seed], prompt="abc")["next"])

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(looked) == 10
    for seed in range(10):
        expected = sample.texts(model, tokenizer, "abc", 1, 60, False, seed=seed)
        assert found[seed] == expected


def open_sample(server, **body):
    """A connection on which a sample has begun to come."""
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)
    link.request("POST", "/sample", json.dumps(body), {"Content-Type": "application/json"})
    answer = link.getresponse()
    assert json.loads(answer.readline())["sample"] == 0
    return link, answer


def leave(link, answer):
    answer.close()  # it holds the socket too
    link.close()


def eventually(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def slowed(monkeypatch, root, seconds=0.01):
    """Count the tokens that are drawn, each of which now takes a while."""
    tokens, stream = [], sample.stream

    def slow(*arguments, **how):
        for piece in stream(*arguments, **how):
            tokens.append(piece)
            time.sleep(seconds)
            yield piece

    monkeypatch.setattr(sample, "stream", slow)
    return tokens


def test_a_token_in_turn_so_that_none_waits_for_anothers_end(server, root, monkeypatch):
    slowed(monkeypatch, root, 0.002)
    long = open_sample(server, run="text", prompt="a", length=2000)
    found, end = whole(server, run="text", prompt="b", length=10)
    assert end["tokens"] == 10
    assert server.places._value == play.PLACES - 1  # the long one still goes on
    leave(*long)
    eventually(lambda: server.places._value == play.PLACES)


def test_a_sample_stops_when_nobody_listens(server, root, monkeypatch):
    tokens = slowed(monkeypatch, root)
    link, answer = open_sample(server, run="text", prompt="a", length=2000)
    answer.readline()
    leave(link, answer)
    eventually(lambda: server.places._value == play.PLACES)
    assert len(tokens) < 200


def test_more_than_there_are_places_for_is_refused_and_then_not(server, root, monkeypatch):
    slowed(monkeypatch, root)
    links = [open_sample(server, run="text", prompt="a", length=2000) for _ in range(play.PLACES)]
    status, content, _ = send(server, "POST", "/sample", {"run": "rnn", "prompt": "a"})
    assert status == 503 and "again" in json.loads(content)["error"]
    assert send(server, "GET", "/runs")[0] == 200
    for link, answer in links:
        leave(link, answer)
    eventually(lambda: server.places._value == play.PLACES)
    assert whole(server, run="rnn", prompt="a", length=5)[1]["tokens"] >= 1


def test_a_model_that_fails_costs_one_answer(server, monkeypatch, capfd):
    def broken(*_, **__):
        raise RuntimeError("out of something")

    monkeypatch.setattr(play, "look", broken)
    status, content, _ = send(server, "POST", "/look", {"run": "rnn"})
    assert status == 500 and "out of something" in json.loads(content)["error"]
    assert "Traceback" in capfd.readouterr().err
    monkeypatch.undo()
    assert ask(server, "/look", run="rnn")["next"]


def test_few_models_are_kept(server):
    for name in EVERY:
        ask(server, "/look", run=name)
        assert 1 <= len(server.shelf.loaded) <= shelf.KEPT
    assert next(reversed(server.shelf.loaded))[0] == EVERY[-1]


def test_a_run_that_was_trained_on_is_read_again(server, root):
    before = ask(server, "/look", run="rnn")["next"]
    checkpoint = runs.load_checkpoint(root / "rnn")
    kept = (root / "rnn" / "best.pt").read_bytes()
    checkpoint["model"]["head.bias"][5] += 10
    runs.save_checkpoint(root / "rnn" / "best.pt", checkpoint)
    assert ask(server, "/look", run="rnn")["next"][0]["token"] == 5 != before[0]["token"]
    (root / "rnn" / "best.pt").write_bytes(b"damaged")
    assert "damaged" in ask(server, "/look", run="rnn")["error"]
    (root / "rnn" / "best.pt").write_bytes(kept)
    assert ask(server, "/look", run="rnn")["next"] == before


# The command line


@pytest.mark.parametrize("flags, word", [
    (["--web", "--prompt=a"], "--prompt"), (["--web", "--model=rnn"], "--model"),
    (["--web", "--num=3"], "--num"), (["--web", "--chat"], "--chat"),
    (["--web", "--stop=a"], "--stop"), (["--web", "--classify=a"], "--classify"),
    (["--web", "--compile"], "--compile"),
    (["--web", "--port=70000"], "--port"), (["--port=8000"], "--web"),
    (["--web", "--run=nowhere"], "nowhere"), (["--run=a", "--run=b"], "--web"),
    (["--web", "--temperature=-1"], "--temperature"), (["--web", "--temperature=101"], "to 100"),
    (["--web", "--top-k=1000001"], "--top-k"), (["--web", "--top-p=1e-7"], "--top-p"),
    (["--web", f"--seed={2**53}"], "--seed"),
])
def test_what_does_not_go_together_gets_a_sentence(refusal, flags, word):
    assert word in refusal(sample.main, *flags)


def test_without_a_run_it_says_how_to_make_one(refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "python train.py" in refusal(sample.main, "--web")


def test_a_run_that_cannot_write(refusal, root):
    assert "sorts texts" in refusal(sample.main, "--web", f"--run={root / 'sorter'}")


def test_a_port_that_is_taken(server, root, refusal, monkeypatch):
    port = server.server_port
    flags = ["--web", f"--run={root / 'rnn'}"]
    assert f"port {port} is taken" in refusal(sample.main, *flags, f"--port={port}")
    monkeypatch.setattr(play, "PORTS", [port])
    assert "are all taken" in refusal(sample.main, *flags)
    monkeypatch.setattr(play, "PORTS", [port, 0])
    free = play.make_server(server.shelf, None)
    assert free.server_port != port and free.server_address[0] == "127.0.0.1"
    free.close()


def test_the_command_serves_until_ctrl_c(root):
    flags = ["--web", "--port=0", f"--run={root / 'rnn'}", f"--run={root / 'text' / 'best.pt'}"]
    command = [sys.executable, str(ROOT / "sample.py"), *flags]
    heard = None  # in the background of a shell, Ctrl-C is not heard: here it is
    if os.name != "nt":
        heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=root.parent,
                          preexec_fn=heard) as process:
        try:
            said = process.stderr.readline()
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", said)[1])
            assert said.startswith("2 runs")
            with socket.create_connection(("127.0.0.1", port), timeout=120) as link:
                body = json.dumps({"run": str(root / "rnn"), "prompt": "a", "length": 2000})
                head = (f"POST /sample HTTP/1.0\r\nHost: localhost:{port}\r\n"
                        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")
                link.sendall((head + body).encode())
                assert link.recv(100).startswith(b"HTTP/1.0 200")
                process.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)
                assert process.wait(120) == 0
            assert process.stderr.read() == "stopped.\n"
        finally:
            process.kill()
