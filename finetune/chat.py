"""Conversations as tokens: one format, for training, for judging and for talking.

    <|end|> <|user|> a question <|assistant|> an answer <|turn|> <|user|> ... <|turn|>

The special tokens are ids of their own, which no text can contain. What is learned is the answers
and the <|turn|> that ends each; all else is only read. Several conversations share a row, each a
segment of its own, so that nothing passes from one to another.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

import data
import sample
from data import ASSISTANT, END, TURN, USER
from data.batches import items
from makemore.model import IGNORED, LanguageModel
from nanogpt.generate import draw, generate, uniforms_of
from nanogpt.gpt import CHUNK

from . import tasks
from .pretrained import Known, Replay, known_ids

ROLES = ("user", "assistant")


@dataclass
class Conversation:
    """messages: what user and assistant say in turn, the user first. kind: for the reports.

    where: the file and line that it stands in, if there is one. spelled: the answers are learned
    letter by letter, whatever tokens they would make.
    """

    messages: list[str]
    kind: str = ""
    where: str = field(default="", compare=False)
    spelled: bool = False


@dataclass
class Chunk:
    """A conversation in tokens: inputs and targets (T,), the target -1 where nothing is learned.

    cut: tokens that were taken out, for it was longer than a row. unseen: characters left out;
    lowered: capitals that became small letters. kind: of the conversation.
    """

    inputs: list[int]
    targets: list[int]
    cut: int = 0
    unseen: int = 0
    lowered: int = 0
    kind: str = ""


def encode(conversation: Conversation, tokenizer: data.Tokenizer, length: int) -> Chunk:
    """A conversation as at most `length` inputs and their targets.

    Of one that is too long the first message of the user loses its beginning, and if that is not
    enough, the end is cut off. ValueError: a message in a file of which nothing is left.
    """
    parts, unseen, lowered = [], 0, 0
    for number, message in enumerate(conversation.messages):
        ids, *changed = message_ids(tokenizer, message, conversation.spelled and number % 2 == 1)
        if not ids and conversation.where:
            raise ValueError(f"{conversation.where}: the tokenizer of this run has never seen a "
                             f"character of {message[:40]!r}.")
        parts.append(ids)
        unseen, lowered = unseen + changed[0], lowered + changed[1]
    excess = max(0, sum(map(len, parts)) + turns(len(parts)) - 1 - length)
    spare = min(excess, max(0, len(parts[0]) - 1))
    parts[0] = parts[0][spare:]
    ids, learned = layout(parts)
    targets = [token if counts else IGNORED for token, counts in zip(ids[1:], learned[1:])]
    return Chunk(ids[:-1][:length], targets[:length], excess, unseen, lowered, conversation.kind)


def prefix(tokenizer: data.Tokenizer) -> str:
    """What stands before every message: with byte pairs a space, so that the first word has the
    tokens that it has within a text, and what an answer takes from a text is the same there and
    here."""
    return "" if tokenizer.kind == "char" else " "


def message_ids(tokenizer: data.Tokenizer, text: str, spelled: bool = False) -> Known:
    """A message in tokens; spelled: letter by letter."""
    if not text:
        return Known([])
    text = prefix(tokenizer) + text
    if spelled and tokenizer.kind != "char":
        return Known([token for letter in text for token in tokenizer.encode(letter)])
    return known_ids(tokenizer, text)


def turns(messages: int) -> int:
    """The special tokens of a conversation of so many messages."""
    return 1 + messages + messages // 2


def layout(parts: list[list[int]]) -> tuple[list[int], list[bool]]:
    """The tokens of messages as one row, and which of them are learned."""
    ids, learned = [END], [False]
    for number, part in enumerate(parts):
        answers = bool(number % 2)
        ids += [ASSISTANT if answers else USER, *part]
        learned += [False] + [answers] * len(part)
        if answers:
            ids.append(TURN)
            learned.append(True)
    return ids, learned


def question(
    messages: list[str], tokenizer: data.Tokenizer, most: int | None = None
) -> tuple[list[int], int]:
    """The tokens to go on from with an answer to the last of an odd number of messages, and how
    many are cut off so that there are no more than `most`: of the first message its beginning, and
    if that is not enough, all but the last ones."""
    assert len(messages) % 2
    parts = [message_ids(tokenizer, message).ids for message in messages]
    excess = max(0, len(layout(parts)[0]) + 1 - most) if most else 0
    parts[0] = parts[0][min(excess, max(0, len(parts[0]) - 1)):]
    ids = [*layout(parts)[0], ASSISTANT]
    return ids[-most:] if most else ids, excess


def pack(chunks: list[Chunk], length: int) -> list[list[Chunk]]:
    """Chunks in rows of at most `length` tokens, the longest first into the first that has room.
    """
    rows: list[list[Chunk]] = []
    room: list[int] = []
    for chunk in sorted(chunks, key=lambda chunk: -len(chunk.inputs)):
        place = next((i for i, free in enumerate(room) if free >= len(chunk.inputs)), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(length)
        rows[place].append(chunk)
        room[place] -= len(chunk.inputs)
    return rows


def arrays(rows: list[list[Chunk]], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens, targets, segments (B, length); what fills up a row is a segment of its own."""
    shape = (len(rows), length)
    tokens, targets = np.full(shape, END), np.full(shape, IGNORED)
    segments = np.full(shape, -1)
    for number, row in enumerate(rows):
        at = 0
        for segment, chunk in enumerate(row):
            place = slice(at, at + len(chunk.inputs))
            tokens[number, place] = chunk.inputs
            targets[number, place] = chunk.targets
            segments[number, place] = segment
            at += len(chunk.inputs)
    return tokens, targets, segments


# another conversation, by what is drawn, and by how far training has come, from 0 to 1
Make = Callable[[np.random.Generator, float], Chunk]


class ChatBatches:
    """Rows of conversations, a function of (seed, step): tokens, targets, segments and weights
    (B, length).

    An epoch goes through all rows once. More rows of a batch are made afresh, without end. The
    weights are for loss_of_answers: every kind of rows counts by how many rows it has, however much
    of them is learned, for there is more to learn in a tale than in a hundred short answers.
    """

    def __init__(
        self, rows: list[list[Chunk]], length: int, batch_size: int,
        fresh: tuple[tuple[Make, int], ...] = (), replay: Replay | None = None, steps: int = 1,
    ):
        """batch_size: of `rows` in a batch. fresh: what makes a conversation, and how many rows of
        a batch are of these; what is free in any row the last of them fills. replay: rows of
        pretraining text that come after all others. steps: of the whole training."""
        assert rows and batch_size > 0
        self.rows, self.length, self.batch_size = rows, length, batch_size
        self.fresh, self.replay, self.steps = fresh, replay, steps

    def __call__(self, seed: int, step: int) -> tuple[np.ndarray, ...]:
        epochs, chosen = items(seed, step, self.batch_size, len(self.rows))
        way = min(1.0, step / self.steps)
        kinds = [arrays([self.filled(self.rows[i], [seed, int(epoch), int(i), 2], way)
                         for epoch, i in zip(epochs, chosen)], self.length)]
        for number, (make, several) in enumerate(self.fresh):
            kinds.append(arrays([self.filled([], [seed, step, n, 3 + number], way, make)
                                 for n in range(several)], self.length))
        if self.replay:
            kinds.append(self.replay(seed, step))
        return tuple(map(np.concatenate, zip(*((*kind, weights(kind[1])) for kind in kinds))))

    def filled(
        self, row: list[Chunk], key: list[int], way: float, first: Make | None = None
    ) -> list[Chunk]:
        """A row and what there is room for; key: all that this depends on."""
        row = list(row)
        if self.fresh:
            generator = np.random.Generator(np.random.PCG64(key))
            room = self.length - sum(len(chunk.inputs) for chunk in row)
            for make in (first, self.fresh[-1][0]):
                while make and len((chunk := make(generator, way)).inputs) <= room:
                    row.append(chunk)
                    room -= len(chunk.inputs)
        return row


def weights(targets: np.ndarray) -> np.ndarray:
    """(B, T) -> (B, T) float32: the same for all targets that are learned, and B together."""
    learned = targets != IGNORED
    return (learned * (len(targets) / max(1, learned.sum()))).astype(np.float32)


def loss_of_answers(
    model: LanguageModel, tokens: Tensor, targets: Tensor, segments: Tensor, weights: Tensor
) -> Tensor:
    """Mean nats of the targets (B, T) that are not -1, each by its weight (B, T); a chunk of the
    logits at a time."""
    def part(x: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        nats = F.cross_entropy(model.logits(x).float(), targets, reduction="none")
        return (nats * weights).sum()

    x, _ = model.features(tokens, segments=segments)
    at = targets != IGNORED
    every = x[at], targets[at], weights[at]
    chunks = max(1, -(-len(every[0]) * model.vocab_size // CHUNK))
    if chunks == 1:
        return part(*every) / every[2].sum()
    # what is forgotten of a chunk is made again for the gradient
    return sum(checkpoint(part, *several, use_reentrant=False)
               for several in zip(*(values.chunk(chunks) for values in every))) / every[2].sum()


def read(path: Path) -> list[Conversation]:
    """The user's own conversations: a JSONL of {"prompt", "response"} or {"messages": [{"role",
    "content"}, ...]}. ValueError: a line that is neither, with its number."""
    found = []
    for where, row in tasks.read_rows(path):
        if "messages" in row:
            found.append(Conversation(check_messages(row["messages"], where), "own", where))
            continue
        pair = [row.get("prompt"), row.get("response")]
        if not all(isinstance(text, str) and text.strip() for text in pair):
            has = ", ".join(row) or "none"
            raise ValueError(f'{where}: expected "prompt" and "response", or "messages", each with '
                             f"text in it; it has the keys {has}.")
        found.append(Conversation(pair, "own", where))
    return found


def check_messages(messages, where: str) -> list[str]:
    """The texts of messages. ValueError: they are not the user's and the assistant's in turn."""
    expected = ('expected "messages" as a list of {"role": "user" or "assistant", "content": '
                "text}, in turn from the user to the assistant")
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise ValueError(f"{where}: {expected}; it has an odd number of them or none.")
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role != ROLES[number % 2]:
            raise ValueError(f"{where}: {expected}; message {number + 1} has the role {role!r}.")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise ValueError(f"{where}: {expected}; message {number + 1} has no text.")
    return [message["content"] for message in messages]


# Answers


def silent(tokenizer: data.Tokenizer) -> list[int]:
    """The tokens that no answer holds; TURN ends it."""
    return [END, *(token for token in tokenizer.silent if token != TURN)]


def answers(
    model: LanguageModel, tokenizer: data.Tokenizer, prompts: list[list[int]], length: int,
    temperature: float, seed: int = 0, progress: str = "", rows: int = 64,
) -> list[tuple[str, bool]]:
    """The answer to each prompt and whether it ended by itself within `length` tokens."""
    found: list[tuple[str, bool]] = [("", False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    groups = [order[i:i + rows] for i in range(0, len(order), rows)]
    # of an answer that ends before it must the rest counts as done
    bar = tqdm(desc=progress or "answering", total=len(prompts) * length, unit="token", leave=False,
               delay=2, disable=None)
    with bar:
        for group in groups:
            drawn: dict[int, list[int]] = {row: [] for row in range(len(group))}
            stream = generate(
                model, [prompts[i] for i in group], length, temperature=temperature, seed=seed,
                stop=TURN, never=silent(tokenizer),
            )
            for row, token in stream:
                drawn[row].append(token)
                bar.update(1 if token != TURN else 1 + length - len(drawn[row]))
            for row, i in enumerate(group):
                ended = drawn[row][-1:] == [TURN]
                text = tokenizer.decode(drawn[row][:-1] if ended else drawn[row])
                found[i] = text.removeprefix(prefix(tokenizer)), ended
    return found


@dataclass
class Talk:
    """A conversation that goes on: what was said stays in the state of the model.

    Where positions are learned, and the block is full, the model starts anew with the last half
    block of what was said.
    """

    model: LanguageModel
    tokenizer: data.Tokenizer
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    state: object = None
    logits: object = None
    said: list[int] = field(default_factory=list)
    turns: int = 0

    @torch.inference_mode()
    def push(self, ids: list[int]) -> None:
        """Read these tokens."""
        limit = getattr(self.model, "limit", None)
        if limit and self.state is not None and int(self.state.position[0]) + len(ids) > limit:
            ids = self.said[-max(1, limit // 2):] + ids
            self.state = None
        if limit and len(ids) > limit:
            ids = ids[-limit:]
        self.said += ids
        device = next(self.model.parameters()).device
        tokens = torch.tensor([ids], device=device)
        for begin in range(0, len(ids), 512):
            logits, self.state = self.model(tokens[:, begin:begin + 512], self.state)
        self.logits = logits[:, -1].float().cpu()

    def say(self, text: str, length: int) -> Iterator[str]:
        """Answer, piece by piece, in at most so many tokens. ValueError: nothing to answer."""
        ids = message_ids(self.tokenizer, text).ids
        if not ids:
            raise ValueError("there is nothing to answer: the text is empty, or the run has never "
                             "seen its characters.")
        self.push([*([] if self.turns else [END]), USER, *ids, ASSISTANT])
        banned = torch.zeros(self.model.vocab_size)
        banned[silent(self.tokenizer)] = -torch.inf
        writer, begin = sample.Writer(self.tokenizer), prefix(self.tokenizer)
        for number in uniforms_of(self.seed, self.turns, length):
            uniform = torch.tensor([number])
            how = (self.temperature, self.top_k, self.top_p)
            token = int(draw(self.logits + banned, uniform, *how))
            self.push([token])
            if token == TURN:
                break
            if piece := writer.push(token):
                yield piece.removeprefix(begin)
                begin = ""
        else:
            self.push([TURN])
        self.turns += 1
        if piece := writer.flush():
            yield piece.removeprefix(begin)
