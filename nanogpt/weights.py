"""GPT-2's weights into a run folder, and out of one:

    python -m nanogpt.weights --from=gpt2 --out=runs/gpt2       or a folder, or nanoGPT's ckpt.pt
    python -m nanogpt.weights --run=runs/mine --export=FOLDER   for the library transformers

The network is that of Radford et al. (2019), and only the names of its tensors differ:

    here                                            there
    embedding, positions, norm, head                wte, wpe, ln_f, lm_head
    layers.I.norm1, layers.I.norm2                  h.I.ln_1, h.I.ln_2
    layers.I.attention.qkv, layers.I.attention.out  h.I.attn.c_attn, h.I.attn.c_proj
    layers.I.mlp.up, layers.I.mlp.down              h.I.mlp.c_fc, h.I.mlp.c_proj

transformers holds the matrices of the layers as (in, out); nanoGPT has them as here, (out, in).
"""

import math
import re
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

import data
from data import cli, runs
from data.cli import add, flag
from data.files import cache_folder

from . import sizes as sizes_of
from .gpt import ARCHS, GPT
from .settings import Config
from .weight_files import Tensors, by_name, download, open_tensors, read_json, unpickle, whole

VOCABULARY = 50257  # of GPT-2; the last is its <|endoftext|>
PADDED = 50304  # nanoGPT's, for speed: the rows after GPT-2's are no token's
EXTRA = len(data.SPECIALS)
NAMES = {
    "embedding": "wte", "positions": "wpe", "norm": "ln_f", "head": "lm_head",
    "norm1": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
    "norm2": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
}
NUMBERS = {
    "layers": "n_layer", "heads": "n_head", "width": "n_embd", "block_size": "n_positions",
    "vocab_size": "vocab_size",
}
# The settings of transformers that change the result: what our GPT can do, their default first.
# Not reorder_and_upcast_attn, which is about half precision: all is float32 here.
CAN_DO = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
NEEDED = (  # as in GPT-2
    "position", "norm", "mlp", "qk_norm", "tied", "score_cap", "logit_cap", "conv",
)
UNTRAINED = dict(  # Progress in train.py before the first step
    step=0, tokens=0, seconds=0.0, training_seconds=0.0, val_loss=math.inf, best_loss=math.inf,
    best_step=0, since_best=0, loss_sum=0.0, loss_steps=0,
)


def translate(name: str) -> tuple[str, bool]:
    """Our name of a tensor -> GPT-2's, and whether transformers holds it transposed."""
    number, module, kind = re.fullmatch(r"(?:layers\.(\d+)\.)?(.+)\.(\w+)", name).groups()
    theirs = NAMES[module] if number is None else f"h.{number}.{NAMES[module]}"
    return f"{theirs}.{kind}", ".c_" in theirs and kind == "weight"


# In: from any source into a run


@dataclass
class Source:
    """Weights that wait to be read one by one, and the sizes that they should have.

    numbers: the keys of NUMBERS. turned: the layers' matrices are (in, out). tensors: those that
    were read go.
    """

    path: Path
    numbers: dict[str, int]
    bias: bool
    mlp: str
    turned: bool
    tensors: Tensors

    @property
    def sizes(self) -> dict:
        """All that a GPT is told, but for the vocabulary and the block size."""
        chosen = {name: self.numbers[name] for name in ("layers", "heads", "width")}
        return sizes_of("gpt") | ARCHS["gpt2"] | chosen | {"bias": self.bias, "mlp": self.mlp}

    def blank(self, vocab_size: int) -> GPT:
        """The model, its weights without memory so far. ValueError: no GPT has such sizes."""
        try:
            with torch.device("meta"):
                return GPT(vocab_size, self.numbers["block_size"], **self.sizes)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of our name and shape, float32. ValueError: it is missing, or another."""
        theirs, matrix = translate(name)
        turned = matrix and self.turned
        expected = shape[::-1] if turned else shape
        if theirs not in self.tensors:
            raise ValueError(f"{self.path} lacks the tensor {theirs} of the shape {expected}.")
        original, path, get = self.tensors.pop(theirs)
        tensor = get(original)
        numbers = torch.is_tensor(tensor) and tensor.is_floating_point()
        found = tuple(tensor.shape) if numbers else getattr(tensor, "dtype", type(tensor))
        if found != expected:
            raise ValueError(f"{path}: the tensor {original} is {found}, where the shape "
                             f"{expected} is expected.")
        # A copy, for what was read may be a window on a file that changes one day.
        tensor = tensor.T if turned else tensor
        return tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)

    def model(self, kept: int, end: int | None) -> GPT:
        """The model, of the first `kept` tokens and our special ones before them.

        end: which of the tokens ends a text. ValueError: a tensor is missing, wrong or too much.
        """
        shapes = self.blank(self.numbers["vocab_size"]).state_dict()
        state = {name: self.read(name, tuple(empty.shape)) for name, empty in shapes.items()
                 if name != "head.weight" or "lm_head.weight" in self.tensors}
        embedding = state["embedding.weight"]
        if not torch.equal(state.get("head.weight", embedding), embedding):
            raise ValueError(f"{self.path}: lm_head.weight is not wte.weight, but in a GPT-2 they "
                             "are one.")
        buffers = r"h\.\d+\.attn\.(masked_)?bias"  # the causal mask, in files of old versions
        if more := [name for name in self.tensors if not re.fullmatch(buffers, name)]:
            raise ValueError(f"{self.path} holds the tensor {more[0]}, for which a GPT-2 with "
                             f"{self.numbers['layers']} layers has no place.")
        state["embedding.weight"] = state["head.weight"] = grow(embedding[:kept], end)
        model = self.blank(kept + EXTRA)
        model.load_state_dict(state, assign=True)
        model.head.weight = model.embedding.weight
        return model.eval()


def grow(rows: Tensor, end: int | None) -> Tensor:
    """Rows (V, C) of an embedding -> (4 + V, C), with rows for our special tokens in front.

    END is the token in row `end`. The others nobody has seen. With the mean of all rows the logit
    is the mean of all logits, which gives each at most 1 / V of the probability, whatever came
    before (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"). A
    row at random could take nearly all of it.
    """
    new = rows.mean(0).repeat(EXTRA, 1)
    if end is not None:
        new[data.END] = rows[end]
    return torch.cat([new, rows])


def load(source: str, text: str | None = None) -> tuple[GPT, dict]:
    """The model of a source, and what its run says of it: "config" and "tokenizer".

    source: a folder of transformers, nanoGPT's ckpt.pt or a name on huggingface.co. text: what a
    model on characters was trained on, as --data of train.py. ValueError: the source is not to be
    had, damaged or no GPT-2, or the text does not fit.
    """
    path = locate(source)
    if path.is_dir() and not (path / "config.json").exists() and (path / "ckpt.pt").exists():
        path /= "ckpt.pt"  # an out_dir of nanoGPT
    found = from_transformers(path) if path.is_dir() else from_nanogpt(path)
    rows = found.numbers["vocab_size"]
    if text is not None:
        dataset = data.load(text)
        tokenizer = data.make_tokenizer("char", 0, dataset.splits)
        if len(tokenizer.characters) != rows:
            raise ValueError(f"{text} has {len(tokenizer.characters)} distinct characters, but "
                             f"{path} has {rows} tokens; --data is the text it was trained on.")
        text = text if text in data.SETS else str(Path(text).expanduser().resolve())
        seen = {"separated": dataset.separated, "fingerprint": runs.fingerprint(dataset.splits)}
        kept, end, saved = rows, None, tokenizer.to_dict()
    elif VOCABULARY <= rows <= PADDED:
        seen = {"separated": True, "fingerprint": None}
        kept, end, saved = VOCABULARY, VOCABULARY - 1, {"kind": "gpt2"}
    else:
        raise ValueError(f"{path} has {rows} tokens, not GPT-2's {VOCABULARY}; if they are "
                         "characters, name the text it was trained on: --data=TEXT.")
    model = found.model(kept, end)
    config = Config(  # of training what nanoGPT finetunes with, for whoever goes on from here
        model="gpt", data=text or f"the weights of {source}", lines=False, sizes=found.sizes,
        block_size=found.numbers["block_size"], steps=1, batch_size=32, lr=3e-5, warmup=0,
        optimizer="adamw", weight_decay=0.1, clip=1.0, eval_every=1, patience=0, seed=0,
        device="auto", dtype="float32", compile=False, tokenizer=saved["kind"],
    )
    return model, {"config": asdict(config) | {"kind": "text"} | seen, "tokenizer": saved}


def write_run(model: GPT, about: dict, run: Path) -> None:
    """A run folder of a model that has made no step here. about: see load. Errors: as in runs."""
    runs.make_run(run, exactly=True)
    state = {"model": model.state_dict(), "average": {}, "optimizers": [], "scaler": {},
             "progress": UNTRAINED}
    for name in runs.CHECKPOINTS:
        runs.save_checkpoint(run / name, about | state)
    runs.write_json(run / "config.json", about["config"] | {"environment": runs.environment()})


# Whose they are


def locate(source: str) -> Path:
    """The file or folder of a source; a name on huggingface.co is downloaded once, to our cache.

    ValueError: it is not here and not there, or no GPT-2.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        raise ValueError(f"there is no file or folder {source}.")
    folder = cache_folder() / "weights" / source
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).exists():
            url = f"https://huggingface.co/{source}/resolve/main/{name}"
            try:
                download(url, folder / name)
            except (OSError, HTTPException) as error:
                raise ValueError(
                    f"there is no file or folder {source} here, and {url} could not be downloaded "
                    f"({error}); where there is a network, save config.json and model.safetensors "
                    f"of https://huggingface.co/{source} in a folder, and name it: --from=FOLDER."
                ) from None
        read_settings(folder / "config.json")  # before gigabytes of another model are fetched
    return folder


def from_transformers(folder: Path) -> Source:
    """A folder of transformers. ValueError: something is missing or damaged, or it is no GPT-2."""
    settings = read_settings(folder / "config.json")
    numbers = {ours: whole(settings, name, folder) for ours, name in NUMBERS.items()}
    # the others are one formula, by a tanh
    mlp = "gelu-exact" if settings.get("activation_function") == "gelu" else "gelu"
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return Source(folder, numbers, True, mlp, True, open_tensors(folder / name))
        if index.exists():  # one of several files, by the names of their tensors
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict) or not all(type(p) is str for p in places.values()):
                raise ValueError(f"{index} does not say which tensor is where; get it anew.")
            parts = [open_tensors(folder / part) for part in sorted(set(places.values()))]
            tensors = {name: entry for part in parts for name, entry in part.items()}
            return Source(folder, numbers, True, mlp, True, tensors)
    raise ValueError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, "
                     "nor the index of one.")


def from_nanogpt(path: Path) -> Source:
    """A checkpoint of nanoGPT (https://github.com/karpathy/nanoGPT). ValueError: it is none."""
    checkpoint = unpickle(path)
    parts = [checkpoint.get(k) for k in ("model_args", "model")] if type(checkpoint) is dict else []
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{path} is no checkpoint of nanoGPT: it lacks model_args or model.")
    args, tensors = parts
    names = NUMBERS | {"block_size": "block_size"}
    numbers = {ours: whole(args, name, path) for ours, name in names.items()}
    tensors = by_name(tensors, path, tensors.get)
    return Source(path, numbers, bool(args.get("bias", True)), "gelu-exact", False, tensors)


def read_settings(path: Path) -> dict:
    """transformers' config.json. ValueError: it is not of a GPT-2 that our GPT can be."""
    settings = read_json(path)
    if (kind := settings.get("model_type")) != "gpt2":
        raise ValueError(f"{path} is not of a GPT-2: its model_type is {kind!r}, not 'gpt2'.")
    hidden = 4 * whole(settings, "n_embd", path)
    for name, allowed in (CAN_DO | {"n_inner": (None, hidden)}).items():
        if (found := settings.get(name, allowed[0])) not in allowed:
            known = " or ".join(map(repr, allowed))
            raise ValueError(f"{path} has {name} {found!r}; the GPT of this project only {known}.")
    return settings


# Out: from a run into a folder of transformers


def export(run: Path, folder: Path) -> str:
    """Write a run's best checkpoint as a folder that transformers loads; return what its ids mean.

    ValueError: no checkpoint, a setting that GPT-2 does not have, or the folder is taken.
    """
    checkpoint = runs.load_checkpoint(run)
    config, kind = checkpoint["config"], checkpoint["tokenizer"]["kind"]
    if config["model"] != "gpt":
        raise ValueError(f"{run} is a {config['model']}; only --model=gpt can be a GPT-2.")
    sizes, block_size = sizes_of("gpt") | config["sizes"], config["block_size"]
    needed = {name: ARCHS["gpt2"][name] for name in NEEDED}
    if sizes["mlp"] == "gelu-exact":
        needed["mlp"] = "gelu-exact"
    # these two have two values that change nothing
    needed["kv_heads"] = sizes["heads"] if sizes["kv_heads"] else 0
    needed["window"] = sizes["window"] if sizes["window"] >= block_size else 0
    for name, value in needed.items():
        if sizes[name] != value:
            raise ValueError(f"{run} cannot become a GPT-2: its {flag(name)} is {sizes[name]}, "
                             f"and should be {value}.")
    state = checkpoint.pop("model") | checkpoint.pop("average", {})
    if kind == "gpt2":
        # Texts end with END here, so its row is what was trained in the place of <|endoftext|>.
        rows, end = state["embedding.weight"], VOCABULARY - 1
        state["embedding.weight"] = torch.cat([rows[EXTRA:EXTRA + end], rows[data.END][None]])
        meaning = "its ids are those of GPT-2's own tokenizer"
    else:
        end, specials = data.END, ", ".join(data.SPECIALS)
        meaning = (f"its ids are those of the run: 0 to {EXTRA - 1} are {specials}, and the "
                   f"tokenizer ({kind}) of sample.load_run({str(run)!r}) reads and writes them")
    with torch.device("meta"):
        model = GPT(len(state["embedding.weight"]), block_size, **sizes | {"bias": True})
    tensors = {}
    for name, empty in model.state_dict().items():
        if name != "head.weight":  # the embedding once more
            theirs, turned = translate(name)
            absent = name.endswith("bias") and not sizes["bias"]
            tensor = torch.zeros(empty.shape) if absent else state.pop(name)
            tensors[f"transformer.{theirs}"] = (tensor.T if turned else tensor).contiguous()
    ends = {"bos_token_id": end, "eos_token_id": end}
    settings = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": "float32",
        "n_layer": sizes["layers"], "n_head": sizes["heads"], "n_embd": sizes["width"],
        "n_positions": block_size, "vocab_size": model.vocab_size, "n_inner": None,
        "embd_pdrop": sizes["dropout"], "resid_pdrop": sizes["dropout"], "attn_pdrop": 0.0,
    }
    usual = {name: allowed[0] for name, allowed in CAN_DO.items()}
    gelu = {"activation_function": "gelu"} if sizes["mlp"] == "gelu-exact" else {}
    runs.make_run(folder, exactly=True)
    # older versions of transformers load no file that does not say whose tensors it holds
    runs.write(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    runs.write_json(folder / "generation_config.json", ends)
    runs.write_json(folder / "config.json", settings | usual | gelu | ends)
    return meaning


def main() -> None:
    parser = cli.Parser(
        prog="python -m nanogpt.weights", description="GPT-2's weights into a run, and out of one.")
    group = parser.add_argument_group("in")
    text = "a folder of transformers, nanoGPT's ckpt.pt, or a name on huggingface.co such as gpt2"
    add(group, "from", text, str, metavar="SOURCE")
    add(group, "out", "the run folder to make", Path, metavar="RUN")
    text = "what a model on characters was trained on, as of train.py"
    add(group, "data", text, str, metavar="DATA")
    group = parser.add_argument_group("out")
    add(group, "run", "a run of --model=gpt --arch=gpt2, or a checkpoint in it", Path)
    add(group, "export", "the folder to make, for transformers", Path, metavar="FOLDER")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    if set(given) not in ({"from", "out"}, {"from", "out", "data"}, {"run", "export"}):
        raise ValueError("give --from and --out (and --data, of a model on characters) to read "
                         "weights, or --run and --export to write those of a run.")
    target = given.get("out") or given["export"]
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists already; name another folder.")
    if "run" in given:
        print(f"{target}: for GPT2LMHeadModel.from_pretrained; {export(given['run'], target)}.")
        return
    model, about = load(given["from"], given.get("data"))
    write_run(model, about, target)
    sizes, kind = about["config"]["sizes"], about["tokenizer"]["kind"]
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters: {sizes['layers']} layers, {sizes['heads']} heads, width "
          f"{sizes['width']}, block size {model.block_size}; {model.vocab_size:,} tokens ({kind})")
    print(f"run folder {target}; its samples: python sample.py --run={target}")


if __name__ == "__main__":
    cli.run(main)
