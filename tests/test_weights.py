"""weights.py: GPT-2 in and out, the same numbers as transformers and nanoGPT, clear refusals."""

import importlib.util
import io
import json
import os
import shutil
import sys
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import data
import nanogpt
import sample
import train
from data import runs
from nanogpt import settings, weight_files, weights

transformers = pytest.importorskip("transformers")
V, BLOCK = 50257, 64
SMALL = dict(n_embd=16, n_layer=2, n_head=2, n_positions=BLOCK)


def make(**config):
    """transformers' GPT-2, small, with noise on every weight, so that each has a part in logits."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL | config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="session")
def theirs():
    return make()


@pytest.fixture(scope="session")
def folder(theirs, tmp_path_factory):
    """A folder of transformers. Not to be written to."""
    return saved(theirs, tmp_path_factory.mktemp("theirs"))


@pytest.fixture
def copy(folder, tmp_path):
    """The same, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def saved(model, folder, **how):
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, **how)
    return folder


def tokens(most=V):
    return torch.randint(most, (2, 40), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(theirs, ours, skipped=weights.EXTRA, rows=V):
    """The largest difference of logits; our ids are higher by `skipped`."""
    ids = tokens(rows)
    expected = theirs(ids).logits[..., :rows]
    assert expected.std() > 0.3
    return (expected - ours(ids + skipped)[0][..., skipped:]).abs().max().item()


def change(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def rewrite(folder, edit):
    """Change the tensors of a folder: edit(tensors) in place, or what it returns."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(edit(tensors) or tensors, path, {"format": "pt"})


# In


@pytest.mark.parametrize(
    "config",
    [
        dict(),
        dict(n_layer=3, n_head=4, n_embd=24, n_positions=48),
        dict(vocab_size=V + 3),  # tokens that someone added: ours end with GPT-2's
        dict(activation_function="gelu_pytorch_tanh"),
        dict(activation_function="gelu"),
        dict(activation_function="gelu_fast", n_inner=64),
        dict(reorder_and_upcast_attn=True),
    ],
)
def test_logits_are_those_of_transformers(config, tmp_path):
    model = make(**config)
    ours, about = weights.load(str(saved(model, tmp_path)))
    assert difference(model, ours) < 1e-4 and not ours.training
    assert ours.vocab_size == V + 4 and about["tokenizer"] == {"kind": "gpt2"}


@torch.no_grad()
def test_greedy_text_is_that_of_transformers(theirs, folder):
    ours, _ = weights.load(str(folder))
    prompt = tokens()[:1, :7]
    how = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
    expected = theirs.generate(prompt, max_new_tokens=50, **how)[0, 7:].tolist()
    assert len(set(expected)) > 5  # not one token for ever
    ids = (prompt[0] + 4).tolist()
    carried = sample.generate(ours, [ids], 50, temperature=0, stop=None)
    assert [max(token, 0) - 4 for _, token in carried] == expected
    for token in expected:  # without a state
        assert ours(torch.tensor([ids]))[0][0, -1].argmax() - 4 == token
        ids.append(token + 4)


@torch.no_grad()
def test_one_token_at_a_time_gives_the_same_logits(theirs, folder):
    ours, _ = weights.load(str(folder))
    ids, state, logits = tokens(), None, []
    for token in ids.T + 4:
        one, state = ours(token[:, None], state)
        logits.append(one)
    assert (theirs(ids).logits - torch.cat(logits, 1)[..., 4:]).abs().max() < 1e-4


@torch.no_grad()
def test_the_rows_of_the_special_tokens(theirs, folder):
    ours, _ = weights.load(str(folder))
    rows, before = ours.embedding.weight, theirs.transformer.wte.weight
    assert rows is ours.head.weight and torch.equal(rows[4:], before)
    assert torch.equal(rows[data.END], before[V - 1])
    for token in (data.USER, data.ASSISTANT, data.TURN):
        assert torch.allclose(rows[token], before.mean(0), atol=1e-6)
    shares = ours(tokens() + 4)[0].softmax(2)
    assert (shares[..., 1:4] <= 1 / V).all()  # so they change next to nothing
    assert torch.equal(shares[..., data.END], shares[..., V + 3])


def test_the_run_folder(folder, tmp_path, command, monkeypatch):
    run = tmp_path / "new" / "gpt2"
    code, said, _ = command(weights.main, f"--from={folder}", f"--out={run}")
    assert code == 0 and "gpt2" in said and f"--run={run}" in said
    assert sorted(p.name for p in run.iterdir()) == ["best.pt", "config.json", "last.pt"]
    for name in runs.CHECKPOINTS:
        checkpoint = runs.load_checkpoint(run / name)
        assert train.Progress(**checkpoint["progress"]) == train.Progress()
        config = settings.restore_config(checkpoint["config"])
        assert config.model == "gpt" and config.block_size == BLOCK and config.tokenizer == "gpt2"
        assert checkpoint["config"]["separated"] and checkpoint["config"]["kind"] == "text"
    written = json.loads((run / "config.json").read_text())
    assert written.items() > checkpoint["config"].items() and "torch" in written["environment"]
    words = [bytes([i]) for i in range(256)] + [b" %d" % i for i in range(V - 1 - 256)]
    monkeypatch.setattr(data.tokenizer, "gpt2_vocabulary", lambda: words)
    code, said, _ = command(sample.main, f"--run={run}", "--length=20", "--prompt=a b")
    assert code == 0 and said.startswith("a b") and len(said) > 20


def prefixed(tensors):
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def buffers(tensors):
    for layer in range(2):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, BLOCK, BLOCK).tril().bool()
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()


@pytest.mark.parametrize("edit", [prefixed, buffers])
def test_other_names_and_buffers(theirs, copy, edit):
    rewrite(copy, edit)
    assert difference(theirs, weights.load(str(copy))[0]) < 1e-4


def test_half_precision_becomes_float32(theirs, copy):
    rewrite(copy, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    ours, _ = weights.load(str(copy))
    assert all(p.dtype == torch.float32 for p in ours.parameters())
    assert 1e-7 < difference(theirs, ours) < 0.05


def test_a_model_in_several_files(theirs, tmp_path):
    saved(theirs, tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert difference(theirs, weights.load(str(tmp_path))[0]) < 1e-4
    missing = sorted(tmp_path.glob("model-*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(ValueError, match=f"{missing.name} is missing"):
        weights.load(str(tmp_path))


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_model_bin(theirs, copy, zipped):
    (copy / "model.safetensors").unlink()
    path, how = copy / "pytorch_model.bin", dict(_use_new_zipfile_serialization=zipped)
    torch.save(theirs.state_dict(), path, **how)
    ours, _ = weights.load(str(copy))
    content = path.read_bytes()
    with open(path, "r+b") as file:  # what becomes of the file is no matter now
        file.write(bytes(len(content)))
    assert difference(theirs, ours) < 1e-4
    (copy / "one.bin").write_bytes(content)
    path.unlink()
    (copy / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "one.bin"}}')
    assert difference(theirs, weights.load(str(copy))[0]) < 1e-4


# nanoGPT


def nanogpt_checkpoint(model, path, prefix="", padded=0, bias=True):
    """What nanoGPT writes of this model: no Conv1D, perhaps no biases, perhaps compiled, padded."""
    state, config = {}, model.config
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 2 and ".c_" in name:
            tensor = tensor.T.contiguous()
        if name in ("transformer.wte.weight", "lm_head.weight"):
            tensor = torch.cat([tensor, torch.zeros(padded, tensor.shape[1])])
        if bias or not name.endswith(".bias"):
            state[prefix + name] = tensor
    args = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd")} | {
        "block_size": config.n_positions, "bias": bias, "dropout": 0.0,
        "vocab_size": config.vocab_size + padded}
    torch.save({"model": state, "optimizer": {"state": {}}, "model_args": args, "iter_num": 5,
                "best_val_loss": torch.tensor(2.0), "config": {"out_dir": "out"}}, path)
    return path


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix, padded", [("", 0), ("_orig_mod.", 47)])
def test_a_checkpoint_of_nanogpt(prefix, padded, bias, tmp_path):
    model = make(activation_function="gelu")
    if not bias:
        with torch.no_grad():
            [p.zero_() for name, p in model.named_parameters() if name.endswith("bias")]
    nanogpt_checkpoint(model, tmp_path / "ckpt.pt", prefix, padded, bias)
    ours, about = weights.load(str(tmp_path))  # the folder will do
    assert ours.vocab_size == V + 4 and about["config"]["sizes"]["bias"] is bias
    assert difference(model, ours) < 1e-4


def test_a_checkpoint_of_nanogpt_on_characters(passage, tmp_path, command, refusal):
    characters = sorted(set(passage.read_text("utf-8")))
    model = make(vocab_size=len(characters), activation_function="gelu")
    path = nanogpt_checkpoint(model, tmp_path / "char.pt")
    run = tmp_path / "run"
    command(weights.main, f"--from={path}", f"--out={run}", f"--data={passage}")
    ours, tokenizer = sample.load_run(run)
    assert tokenizer.characters == "".join(characters)
    assert difference(model, ours, rows=len(characters)) < 1e-4
    mean = model.transformer.wte.weight.mean(0)
    assert torch.allclose(ours.embedding.weight[:4], mean, atol=1e-6)
    config = runs.load_checkpoint(run)["config"]
    assert config["fingerprint"] == runs.fingerprint(data.load(config["data"]).splits)
    assert command(sample.main, f"--run={run}", "--length=30")[0] == 0

    back = tmp_path / "back"
    said = command(weights.main, f"--run={run}", f"--export={back}")[1]
    assert "<|end|>" in said and "char" in said
    again = transformers.GPT2LMHeadModel.from_pretrained(back).eval()
    assert difference(again, ours, skipped=0, rows=len(characters) + 4) < 1e-4

    other = tmp_path / "other"
    said = refusal(weights.main, f"--from={path}", f"--out={other}")
    assert "--data" in said and str(len(characters)) in said and str(V) in said
    said = refusal(weights.main, f"--from={path}", f"--out={other}", "--data=tales")
    assert str(len(characters)) in said and "tales" in said and not other.exists()


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_the_logits_of_nanogpt_itself(bias, tmp_path, monkeypatch):
    path = Path(os.environ.get("NANOGPT", "no clone"), "model.py")
    if not path.exists():
        pytest.skip("NANOGPT is not the path of a clone of nanoGPT")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "nanogpt_model", module)  # its dataclass looks there
    spec.loader.exec_module(module)
    args = dict(n_layer=3, n_head=4, n_embd=32, block_size=BLOCK, vocab_size=50304, bias=bias)
    model = module.GPT(module.GPTConfig(**args)).eval()
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    torch.save({"model": model.state_dict(), "model_args": args}, tmp_path / "ckpt.pt")
    ours, _ = weights.load(str(tmp_path / "ckpt.pt"))
    ids = tokens()
    expected = model(ids, ids)[0][..., :V]
    assert (expected - ours(ids + 4)[0][..., 4:]).abs().max() < 1e-5


# Out


def test_there_and_back_not_a_bit_changes(folder, tmp_path, command):
    run, back = tmp_path / "run", tmp_path / "back"
    command(weights.main, f"--from={folder}", f"--out={run}")
    code, said, _ = command(weights.main, f"--run={run}", f"--export={back}")
    assert code == 0 and "GPT-2's own tokenizer" in said
    before, after = (load_file(path / "model.safetensors") for path in (folder, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    model = transformers.GPT2LMHeadModel.from_pretrained(back)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == V - 1


def own_run(path, tokenizer, **sizes):
    """The folder of a run of --model=gpt with noise on every weight, and its model."""
    torch.manual_seed(0)
    arch = nanogpt.gpt.ARCHS["gpt2"] | dict(layers=2, heads=2, width=12, dropout=0.1)
    model = nanogpt.build("gpt", tokenizer.vocab_size, BLOCK, **arch | sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    config = dict(model="gpt", block_size=BLOCK, sizes=arch | sizes)
    path.mkdir()
    checkpoint = {"config": config, "tokenizer": tokenizer.to_dict(), "model": model.state_dict()}
    runs.save_checkpoint(path / "best.pt", checkpoint)
    return model


@pytest.mark.parametrize("sizes", [dict(), dict(bias=False), dict(kv_heads=2, window=BLOCK + 1)])
@pytest.mark.parametrize("tokenizer", [
    data.CharTokenizer("\nabc🙂"), data.BytePairTokenizer.train(["abab abab"], 262)])
def test_a_run_of_our_own_in_transformers(sizes, tokenizer, tmp_path):
    ours = own_run(tmp_path / "run", tokenizer, **sizes)
    said = weights.export(tmp_path / "run", tmp_path / "out")
    assert tokenizer.kind in said
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    assert difference(theirs, ours, skipped=0, rows=tokenizer.vocab_size) < 1e-4
    assert theirs.config.eos_token_id == data.END


def test_the_end_that_was_trained_here_is_exported_and_averages_go_first(folder, tmp_path):
    model, about = weights.load(str(folder))
    with torch.no_grad():
        model.embedding.weight[data.END] = 7.0
    average = {"norm.bias": torch.full((16,), 3.0)}
    runs.save_checkpoint(tmp_path / "x.pt", about | {"model": model.state_dict(),
                                                     "average": average})
    weights.export(tmp_path / "x.pt", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert (tensors["transformer.wte.weight"][V - 1] == 7).all()
    assert (tensors["transformer.ln_f.bias"] == 3).all()


@pytest.mark.parametrize("name, value", [
    ("position", "rotary"), ("norm", "rms"), ("mlp", "relu2"), ("qk_norm", True), ("tied", False),
    ("score_cap", 9.0), ("logit_cap", 15.0), ("kv_heads", 1), ("window", 5), ("conv", 3)])
def test_what_no_gpt2_can_be_is_said(name, value, tmp_path, refusal):
    own_run(tmp_path / "run", data.CharTokenizer("abc"), **{name: value})
    out = tmp_path / "out"
    said = refusal(weights.main, f"--run={tmp_path / 'run'}", f"--export={out}")
    assert f"--{name.replace('_', '-')} is {value}" in said and not out.exists()


def test_a_run_of_another_stage_is_refused(text_run, tmp_path, refusal):
    said = refusal(weights.main, f"--run={text_run}", f"--export={tmp_path / 'out'}")
    assert "transformer" in said and "--model=gpt" in said and not (tmp_path / "out").exists()


# Refusals


CONFIGS = [
    (dict(model_type="llama"), ["'llama'", "GPT-2"]),
    (dict(n_layer="two"), ["n_layer", "'two'"]),
    (dict(n_positions=0), ["n_positions", "at least 1"]),
    (dict(n_head=3), ["3 heads", "16"]),
    (dict(n_embd=32), ["wte.weight", "(50257, 16)", "(50257, 32)"]),
    (dict(vocab_size=32000), ["32000", str(V), "--data"]),
    (dict(vocab_size=10**6), ["1000000", "not GPT-2's 50257"]),
    (dict(activation_function="relu"), ["activation_function 'relu'", "'gelu_new'"]),
    (dict(layer_norm_epsilon=1e-6), ["layer_norm_epsilon 1e-06", "1e-05"]),
    (dict(n_inner=32), ["n_inner 32", "64"]),
    (dict(scale_attn_weights=False), ["scale_attn_weights False"]),
    (dict(scale_attn_by_inverse_layer_idx=True), ["scale_attn_by_inverse_layer_idx True"]),
    (dict(add_cross_attention=True), ["add_cross_attention True"]),
    (dict(tie_word_embeddings=False), ["tie_word_embeddings False"]),
]


@pytest.mark.parametrize("changed, words", CONFIGS, ids=[next(iter(c)) for c, _ in CONFIGS])
def test_what_our_gpt_cannot_be_is_said(changed, words, copy, tmp_path, refusal):
    change(copy, **changed)
    said = refusal(weights.main, f"--from={copy}", f"--out={tmp_path / 'run'}")
    assert all(word in said for word in [str(copy), *words]), said
    assert not (tmp_path / "run").exists()


def wrong(**tensors):
    """An edit of tensors, with __ for a dot in their names; None takes one away."""

    def edit(content):
        for name, tensor in tensors.items():
            name = "transformer." + name.replace("__", ".")
            content.pop(name, None)
            if tensor is not None:
                content[name] = tensor

    return edit


EDITS = [
    (wrong(h__1__mlp__c_fc__weight=torch.ones(64, 16)),
     ["model.safetensors", "h.1.mlp.c_fc.weight", "(64, 16)", "(16, 64)"]),
    (wrong(ln_f__weight=torch.ones(16, dtype=torch.int8)), ["ln_f.weight", "int8", "(16,)"]),
    (wrong(h__0__attn__c_attn__bias=None), ["lacks", "h.0.attn.c_attn.bias", "(48,)"]),
    (wrong(h__2__ln_1__weight=torch.ones(16)), ["h.2.ln_1.weight", "2 layers"]),
    (lambda content: content.update({"lm_head.weight": torch.ones(V, 16)}),
     ["lm_head.weight", "wte.weight"]),
]


@pytest.mark.parametrize("edit, words", EDITS)
def test_wrong_tensors_are_named(edit, words, copy, tmp_path, refusal):
    rewrite(copy, edit)
    said = refusal(weights.main, f"--from={copy}", f"--out={tmp_path / 'run'}")
    assert all(word in said for word in [str(copy), *words]), said
    assert not (tmp_path / "run").exists()


BROKEN = {  # name of the file, what becomes of its bytes, what is said
    "cut": ("model.safetensors", lambda raw: raw[:-10],
            ["cut off", "transformer.wte.weight, 3216438 of its 3216448 bytes"]),
    "half": ("model.safetensors", lambda raw: raw[:5000], ["cut off", "transformer.h.0."]),
    "header": ("model.safetensors", lambda raw: raw[:300], ["header"]),
    "pointer": ("model.safetensors", lambda raw: b"version https://git-lfs", ["Git LFS"]),
    "empty": ("model.safetensors", lambda raw: b"", ["header"]),
    "gone": ("model.safetensors", None, ["no weights", "pytorch_model.bin"]),
    "no config": ("config.json", None, ["config.json", "cannot be read"]),
    "broken": ("config.json", lambda raw: raw[:40], ["config.json", "JSON"]),
    "a list": ("config.json", lambda raw: b"[]", ["config.json", "JSON"]),
}


@pytest.mark.parametrize("name, damage, words", BROKEN.values(), ids=BROKEN)
def test_broken_files_are_named(name, damage, words, copy, tmp_path, refusal):
    path = copy / name
    raw = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(raw))
    said = refusal(weights.main, f"--from={copy}", f"--out={tmp_path / 'run'}")
    assert all(word in said for word in [str(copy), name, *words]), said
    assert not (tmp_path / "run").exists()


def test_other_broken_files_of_transformers(copy, tmp_path, refusal):
    flags = f"--from={copy}", f"--out={tmp_path / 'run'}"
    index = copy / "model.safetensors.index.json"
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "pytorch_model.bin is damaged" in refusal(weights.main, *flags)
    torch.save([1, 2], copy / "pytorch_model.bin")
    assert "pytorch_model.bin does not hold" in refusal(weights.main, *flags)
    torch.save({"transformer.wte.weight": 3}, copy / "pytorch_model.bin")
    said = refusal(weights.main, *flags)
    assert "wte.weight" in said and "int" in said
    for content in ("{", '{"weight_map": [1]}', '{"weight_map": {"wte.weight": 1}}', "{}"):
        index.write_text(content)
        assert str(index) in refusal(weights.main, *flags)
    index.write_text('{"weight_map": {"wte.weight": "model-1.safetensors"}}')
    assert "model-1.safetensors is missing" in refusal(weights.main, *flags)
    assert not (tmp_path / "run").exists()


def test_damaged_checkpoints_of_nanogpt(tmp_path, theirs, refusal, text_run):
    whole = nanogpt_checkpoint(theirs, tmp_path / "whole.pt").read_bytes()
    path, out = tmp_path / "ckpt.pt", tmp_path / "run"
    for content in (whole[:-2000], whole[:50], b"", b"\0text"):
        path.write_bytes(content)
        said = refusal(weights.main, f"--from={path}", f"--out={out}")
        assert f"{path} is damaged" in said
    said = refusal(weights.main, f"--from={text_run / 'best.pt'}", f"--out={out}")
    assert "model_args" in said
    checkpoint = torch.load(tmp_path / "whole.pt")
    for key, value, words in (("n_head", None, "n_head is None"), ("n_layer", 3, "lacks"),
                              ("block_size", 32, "wpe.weight")):
        args = checkpoint["model_args"] | {key: value}
        torch.save(checkpoint | {"model_args": args}, path)
        assert words in refusal(weights.main, f"--from={path}", f"--out={out}")
    assert not out.exists()


def test_flags_that_do_not_go_together(folder, tmp_path, refusal):
    out = tmp_path / "out"
    for flags in ([], [f"--from={folder}", f"--run={out}"], [f"--from={folder}"], [f"--run={out}"],
                  [f"--run={folder}", f"--export={out}", "--data=tales"],
                  [f"--from={folder}", f"--export={out}"]):
        said = refusal(weights.main, *flags)
        assert all(flag in said for flag in ("--from", "--out", "--run", "--export"))
    for flags in ([f"--from={folder}", f"--out={folder}"], [f"--run={out}", f"--export={folder}"]):
        assert f"{folder} exists" in refusal(weights.main, *flags)
    assert "no file or folder ./x" in refusal(weights.main, "--from=./x", f"--out={out}")
    assert not out.exists()


# From the network


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """hub: the addresses that were asked for; served from `folder`, into an empty cache."""
    asked = []

    def serve(url, timeout):
        asked.append(url)
        assert timeout > 0
        name, file = url.removeprefix("https://huggingface.co/").split("/resolve/main/")
        if name != "gpt2":
            raise urllib.error.HTTPError(url, 404, "Not Found", {}, None)
        response = io.BytesIO((folder / file).read_bytes())
        response.headers = {"Content-Length": str(len(response.getvalue()))}
        return response

    monkeypatch.setattr(weight_files.urllib.request, "urlopen", serve)
    monkeypatch.setenv("RUNGS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_name_is_downloaded_once(hub, theirs):
    assert difference(theirs, weights.load("gpt2")[0]) < 1e-4
    assert [url.rsplit("/", 1)[1] for url in hub] == ["config.json", "model.safetensors"]
    assert difference(theirs, weights.load("gpt2")[0]) < 1e-4 and len(hub) == 2


def test_a_download_that_fails_leaves_nothing(hub, tmp_path, monkeypatch, refusal):
    serve = weight_files.urllib.request.urlopen

    def short(url, timeout):
        response = serve(url, timeout)
        if url.endswith(".safetensors"):
            response.truncate(1000)
        return response

    monkeypatch.setattr(weight_files.urllib.request, "urlopen", short)
    said = refusal(weights.main, "--from=gpt2", "--out=run")
    assert "1000 of" in said and "--from=FOLDER" in said
    assert [p.name for p in (tmp_path / "cache/weights/gpt2").iterdir()] == ["config.json"]
    assert not (tmp_path / "run").exists()


def test_without_a_network_the_way_is_said(hub, monkeypatch, refusal):
    said = refusal(weights.main, "--from=someone/gpt3", "--out=run")
    assert "404" in said and "https://huggingface.co/someone/gpt3" in said

    def offline(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(weight_files.urllib.request, "urlopen", offline)
    said = refusal(weights.main, "--from=gpt2", "--out=run")
    assert "no network" in said and "--from=FOLDER" in said and "model.safetensors" in said


def test_of_another_model_only_the_config_is_fetched(hub, monkeypatch, refusal):
    serve = weight_files.urllib.request.urlopen

    def other(url, timeout):
        serve(url, timeout)
        response = io.BytesIO(b'{"model_type": "llama"}')
        response.headers = {}
        return response

    monkeypatch.setattr(weight_files.urllib.request, "urlopen", other)
    assert "'llama'" in refusal(weights.main, "--from=gpt2", "--out=run") and len(hub) == 1
