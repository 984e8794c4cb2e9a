"""A network learns to converse: it reads conversations, and says at each token which comes next.

The tokens are pieces of words, found in the same conversations by byte-pair encoding. The network
is a small Llama; what it knows of the world is what people have told each other there.

    palto train chat
    palto chat --model runs/chat

Or a larger one, which has read much of the web, learns the tone of some conversations; of it only
small layers beside its own are trained (LoRA).

    palto tune chat
    palto chat --adapter runs/tuned
"""

from __future__ import annotations

import json
import lzma
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

import palto
from palto import nn, optim
from palto.chat import generate, replies
from palto.chat.models import ChatModel
from palto.chat.replies import Matcher, Question
from palto.data import Dialogues, Turn
from palto.extras import require
from palto.formats.whole import write_whole
from palto.train import RoundTraining, TrainingStopped, Watch, load_weights, save_weights

# --- Text and tokens -----------------------------------------------------------------------------

#: The tokens before a conversation, and after each turn: two people take turns, so no token says
#: who speaks.
START, END = "<|start|>", "<|end|>"
#: The same as a chat template, which programs that talk by the model read.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role != 'system' %}"
    "{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def new_tokenizer(dialogues: Dialogues, vocabulary: int) -> Any:
    """A tokenizer of the library `tokenizers`, learned from conversations.

    It begins with the 256 bytes, so nothing is unknown to it, and adds the pairs of tokens that
    follow each other most often (Sennrich, Haddow and Birch, "Neural machine translation of rare
    words with subword units", 2016).

    Args:
        dialogues: what to learn from.
        vocabulary: how many tokens there shall be at most.
    """
    tokenizers = require("tokenizers", "chat", "palto train chat")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[START, END], show_progress=False,
        initial_alphabet=sorted(byte_level.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator((turn.text for turns in dialogues for turn in turns), trainer)
    return tokenizer


def encoded(tokenizer: Any, dialogues: Dialogues) -> list[np.ndarray]:
    """The tokens of each conversation."""
    texts = [turn.text for turns in dialogues for turn in turns]
    all_turns = iter(_encoded(tokenizer, texts))
    start, end = (tokenizer.token_to_id(x) for x in (START, END))
    return [
        np.array([start, *(x for _ in turns for x in (*next(all_turns), end))], np.int64)
        for turns in dialogues
    ]


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    tokenizer.encode_special_tokens = True  # what somebody writes is never a mark of ours
    return [x.ids for x in tokenizer.encode_batch(texts, add_special_tokens=False)]


def as_bytes(dialogues: Dialogues) -> bytes:
    """Conversations in UTF-8, with a byte before each and one after each turn.

    Of this text all bits per byte are: of the network, whose tokens say the same, and of xz.
    """
    return "".join(
        "\x02" + "".join(turn.text + "\x03" for turn in turns) for turns in dialogues
    ).encode()


# --- The plan ------------------------------------------------------------------------------------


def _check_context(context: int) -> None:
    if context < generate.LEAST or context % 8:
        raise ValueError(f"context must be {generate.LEAST} or more, in whole 8s, got {context}")


@dataclass(frozen=True)
class Plan:
    """How the network is trained."""

    minutes: float = 60.0
    """How long to learn; how many steps that makes is measured in the first ones."""
    steps: int = 0
    """Steps of the optimiser; 0: as many as the minutes allow."""
    vocabulary: int = 4096
    """Different tokens at most."""
    width: int = 320
    """The length of a token's vector."""
    layers: int = 6
    """Blocks that follow each other."""
    heads: int = 5
    """Attentions side by side."""
    hidden: int = 768
    """The width inside a block's MLP."""
    context: int = 256
    """How many tokens the network looks back on, itself included."""
    batch_size: int = 4
    """Rows of so many tokens in a step."""
    lr: float = 1.5e-3
    """The learning rate that warming up leads to; it then falls to zero."""
    weight_decay: float = 0.1
    """By how much of the learning rate weights are pulled to zero in each step."""
    share: float = 0.05
    """The share of the conversations for validation, and for the test."""
    questions: int = 500
    """In how many places of the test the true reply is to be found among ten."""
    seed: int = 0
    """Of everything that is random."""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: a number out of range.
        """
        for name in ("width", "layers", "heads", "hidden", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "questions", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("lr", "minutes"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 < self.share < 0.5:
            raise ValueError(f"share must be between 0 and 0.5, got {self.share}")
        if not 258 <= self.vocabulary <= 1 << 16:
            raise ValueError(
                f"vocabulary must be from 258, the bytes and two marks, to 65536, got "
                f"{self.vocabulary}"
            )
        _check_context(self.context)
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"a width of {self.width} does not make {self.heads} heads of an even width"
            )


@dataclass(frozen=True)
class Round:
    """What came of some steps.

    Attributes:
        steps: of the optimiser until now.
        of: so many there are to be.
        loss: the mean bits per token of the steps.
        bits: bits per byte of the conversations for validation; None where the training was
            interrupted, and nothing was measured.
        seconds: since the training began, interruptions not counted.
        text: the hash of what is learned from.
    """

    steps: int
    of: int
    loss: float
    bits: float | None
    seconds: float
    text: str


class Batches:
    """Rows of tokens: all conversations one after the other, cut, in another order in each epoch.

    A step's batch depends on its number alone, so a training goes on anywhere.

    Args:
        dialogues: the tokens of each.
        context: how many tokens a row has, and as many that follow them.
        batch_size: how many rows a batch has.
        seed: of the orders.

    Raises:
        ValueError: there is too little for one batch.
    """

    def __init__(
        self, dialogues: Sequence[np.ndarray], context: int, batch_size: int, seed: int
    ) -> None:
        self._dialogues, self._context = dialogues, context
        self._batch_size, self._seed = batch_size, seed
        count = sum(map(len, dialogues))
        #: How many batches there are until all was read once.
        self.epoch_steps = (count - 1) // context // batch_size
        if not self.epoch_steps:
            raise ValueError(
                f"there is too little to learn from: {count} tokens, where a step wants "
                f"{batch_size} rows of {context}; give more conversations, or a smaller "
                "--batch-size or --context"
            )
        self._epoch = -1

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a step, and those that follow each, int64 (batch, context)."""
        epoch, place = divmod(step, self.epoch_steps)
        if epoch != self._epoch:
            generator = np.random.default_rng((self._seed, epoch))
            order = generator.permutation(len(self._dialogues))
            self._tokens = np.concatenate([self._dialogues[k] for k in order])
            count = (len(self._tokens) - 1) // self._context
            self._rows = generator.permutation(count) * self._context
            self._epoch = epoch
        rows = self._rows[place * self._batch_size : (place + 1) * self._batch_size]
        places = rows[:, None] + np.arange(self._context)
        return self._tokens[places], self._tokens[places + 1]


# --- Learning ------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """A Llama under the names that its weights have in Hugging Face's files.

    Args:
        plan: how large it is.
        vocabulary: how many tokens there are.
    """

    def __init__(self, plan: Plan, vocabulary: int) -> None:
        self.model = nn.models.llama(
            vocabulary, plan.context, plan.width, plan.heads, None, plan.layers, plan.hidden
        )

    def forward(self, tokens: palto.Tensor) -> palto.Tensor:
        """Tokens (batch, time) to logits of each next one (batch, time, vocabulary)."""
        logits: palto.Tensor = self.model(tokens)
        return logits


#: Inside Adam's root. Of millions of gradients whose norm is about 1, most are below 1e-4, which is
#: the root of the usual 1e-8.
EPS = 1e-15
#: So many validations there are at most, and so many steps lie between them at least.
ROUNDS, ROUND_STEPS = 30, 200
#: How many of the conversations for validation they read.
HELD = 25


class Learning(RoundTraining[Any, Round]):
    """Steps until a number of them, or some minutes, are done; what learns is a subclass's affair.

    Args:
        folder: where the run lies, or will lie.
        plan: how to train: a `Plan` or a `Tune`.
        model: what is kept.
        optimizer: by what it learns.
        text: the hash of what is learned from.

    Raises:
        ValueError: the run in the folder has begun with other conversations; or see
            `palto.train.RoundTraining`.
        OSError: the folder cannot be written to.
    """

    #: Steps in which the learning rate rises, and those whose time says how many there will be.
    WARMUP, TIMED = 100, slice(10, 50)
    batches: Batches

    def __init__(
        self,
        folder: str | os.PathLike[str],
        plan: Plan | Tune,
        model: nn.Module,
        optimizer: optim.Optimizer,
        text: str,
    ) -> None:
        super().__init__(folder, plan, model, optimizer, Round)
        self.optimizer, self._text = optimizer, text
        if self.rounds and self.rounds[-1].text != text:
            raise ValueError(
                f"{folder} holds a run that has learned from other conversations; give another "
                "folder with --out"
            )

    def step(self, tokens: np.ndarray, following: np.ndarray) -> palto.Tensor:
        """Learn from a batch; its loss, in nats per token."""
        raise NotImplementedError

    def validate(self) -> float:
        """Bits per byte of the conversations for validation."""
        raise NotImplementedError

    def run(self, watch: Watch) -> None:
        """Train until all steps are done.

        Raises:
            KeyboardInterrupt: somebody has asked to stop; all steps are kept.
            TrainingStopped: a gradient is not finite.
        """
        plan = self.plan
        done, total, before = 0, plan.steps, 0.0
        if self.rounds:
            last = self.rounds[-1]
            done, total, before = last.steps, last.of, last.seconds
        best = min((x.bits for x in self.rounds if x.bits is not None), default=math.inf)
        began = time.perf_counter() - before
        losses: list[float] = []
        times: list[float] = []
        with asked_to_stop() as stopped:
            while not total or done < total:
                for group in self.optimizer.groups:
                    group.lr = self._rate(done, total)
                begun = time.perf_counter()
                try:
                    loss = float(self.step(*self.batches.batch(done)))
                except FloatingPointError as error:
                    raise TrainingStopped(
                        f"step {done + 1}: {error}; go on with a lower --lr in another folder"
                    ) from error
                losses.append(loss / math.log(2))
                times.append(time.perf_counter() - begun)
                done += 1
                if not total and stopped():
                    raise KeyboardInterrupt  # some seconds of work
                if not total and len(times) == self.TIMED.stop:
                    seconds = float(np.mean(times[self.TIMED]))
                    total = max(round(60 * plan.minutes / seconds), self.WARMUP)
                is_whole = done == total or (
                    total and done % max(total // ROUNDS, ROUND_STEPS) == 0
                )
                if not is_whole and not stopped():
                    speed = plan.batch_size * plan.context / float(np.mean(times[-30:]))
                    remark = f"loss {np.mean(losses[-30:]):.2f}, {speed:,.0f} tokens/s"
                    watch("learning", done / total if total else 0.0, remark)
                    continue
                bits = None if stopped() else round(self.validate(), 4)
                one = Round(done, total, round(float(np.mean(losses)), 4), bits,
                            round(time.perf_counter() - began, 1), self._text)  # fmt: skip
                self.keep(one, is_best=bits is not None and bits < best)
                if bits is None:
                    raise KeyboardInterrupt
                best, losses = min(best, bits), []
                watch(f"step {done} of {total}", 1.0, described(one))

    def _rate(self, step: int, total: int) -> float:
        """The learning rate of a step; while nobody knows how many there are, it warms up."""
        total = total or 1 << 30
        warmup = min(self.WARMUP, total // 2)
        return float(optim.schedules.cosine(self.plan.lr, total + 1, warmup=warmup)(step))


class Network(nn.Module):
    """What is trained together: a language model, and what finds replies by what it knows."""

    def __init__(self, language: LanguageModel, matcher: Matcher) -> None:
        self.language, self.matcher = language, matcher


#: How much finding replies counts beside foreseeing tokens, in what both learn; what learns nothing
#: but to find replies does it about as fast with any such number, for Adam divides by it.
MATCHING = 0.05


class Training(Learning):
    """A run of the training in a folder.

    Args:
        folder: where it lies, or will lie.
        plan: how to train.
        dialogues: what to learn from, and to measure on.

    Raises:
        ValueError: too little to learn from; or see `Learning`.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str], plan: Plan, dialogues: Dialogues) -> None:
        self.learn, self.validation, self.test = dialogues.split(plan.share)
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer = _tokenizer_in(Path(folder), self.learn, plan.vocabulary)
        tokens = encoded(self.tokenizer, self.learn)
        self.batches = Batches(tokens, plan.context, plan.batch_size, plan.seed)
        palto.manual_seed(plan.seed)
        vocabulary = self.tokenizer.get_vocab_size()
        self.model = LanguageModel(plan, vocabulary)
        marks = (self.tokenizer.token_to_id(x) for x in (START, END))
        self.matcher = Matcher(vocabulary, plan.width, *marks)
        network = Network(self.model, self.matcher)
        optimizer = new_optimizer(network, plan)
        super().__init__(folder, plan, network, optimizer, _hash(tokens))
        self.judge = Judge(self.model, plan.context)
        self._step = self._compiled_step(network)
        self._held = Dialogues(self.validation[k] for k in range(min(HELD, len(self.validation))))

    def step(self, tokens: np.ndarray, following: np.ndarray) -> palto.Tensor:
        """Learn from a batch; its loss as a language model, in nats per token."""
        return self._step(tokens, following)

    def _compiled_step(self, network: Network) -> Callable[..., palto.Tensor]:
        model, matcher, optimizer = self.model.model, self.matcher, self.optimizer

        @palto.compile
        def step(tokens: palto.Tensor, following: palto.Tensor) -> palto.Tensor:
            hidden = model.hidden(tokens)
            loss = nn.functional.cross_entropy(model.logits(hidden), following)
            (loss + MATCHING * matcher.loss(tokens, hidden)).backward()
            for part in (network.language, network.matcher):  # neither makes the other's smaller
                optim.clip_grad_norm_(part, 1.0)
            optimizer.step()
            return loss

        return step

    def validate(self) -> float:
        """Bits per byte of some of the conversations for validation."""
        return self.bits_per_byte(self._held)

    def bits_per_byte(self, dialogues: Dialogues) -> float:
        """Bits that the network needs for each byte of `as_bytes`."""
        return self.judge.total(encoded(self.tokenizer, dialogues)) / len(as_bytes(dialogues))

    def matches(self, asked: Sequence[Question]) -> np.ndarray:
        """How well replies go with what was said, by `Matcher`: (questions, replies)."""
        model, matcher, context = self.model.model, self.matcher, self.plan.context

        @palto.compile
        def scores(tokens: palto.Tensor, choices: palto.Tensor) -> palto.Tensor:
            with palto.no_grad():
                found: palto.Tensor = matcher(tokens, model.hidden(tokens), choices)
                return found

        start, end = (self.tokenizer.token_to_id(x) for x in (START, END))
        found = []
        for question in asked:
            texts = _encoded(self.tokenizer, [*question.said, *question.replies])
            count = len(question.said)
            said = [start, *(x for text in texts[:count] for x in (*text, end))][-context:]
            tokens = np.full((1, context), start)  # after the last turn nothing matters
            tokens[0, : len(said)] = said
            choices = np.full((1, len(question.replies), context // 4 + 1), start)
            for row, text in zip(choices[0], texts[count:], strict=True):
                cut = [*text[: context // 4], end]
                row[: len(cut)] = cut
            found.append(scores(tokens, choices).numpy()[0])
        return np.stack(found)


def new_optimizer(module: nn.Module, plan: Plan) -> optim.AdamW:
    """The lecture's Adam, with all but vectors pulled to zero."""
    parameters = list(module.parameters())
    return optim.AdamW(
        [
            {"params": [x for x in parameters if x.ndim > 1]},
            {"params": [x for x in parameters if x.ndim < 2], "weight_decay": 0.0},
        ],
        lr=plan.lr, eps=EPS, weight_decay=plan.weight_decay, variant="lecture",
    )  # fmt: skip


def compiled_step(
    model: nn.Module, learns: nn.Module, optimizer: optim.Optimizer
) -> Callable[..., palto.Tensor]:
    """A whole step as one program: forward, backward, clipping, the optimiser.

    Args:
        model: from tokens to logits.
        learns: what of it learns.
        optimizer: by what.
    """

    @palto.compile
    def step(tokens: palto.Tensor, following: palto.Tensor) -> palto.Tensor:
        loss = nn.functional.cross_entropy(model(tokens), following)
        loss.backward()
        optim.clip_grad_norm_(learns, 1.0)
        optimizer.step()
        return loss

    return step


def _hash(tokens: Sequence[np.ndarray]) -> str:
    return sha256(np.concatenate(tokens).tobytes()).hexdigest()


def _tokenizer_in(folder: Path, learn: Dialogues, vocabulary: int) -> Any:
    """The run's tokenizer; learned where there is none yet."""
    path = folder / "tokenizer.json"
    if not path.exists():
        tokenizer = new_tokenizer(learn, vocabulary)
        write_whole(path, tokenizer.to_str().encode())
    return _opened_tokenizer(path)


def _opened_tokenizer(path: Path) -> Any:
    tokenizers = require("tokenizers", "chat", "palto train chat")
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises Exception itself
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{path} is no whole tokenizer: {error}") from None


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, or the process was asked to end, while this goes on.

    So that a step is never cut in two. A second Ctrl-C ends it at once.
    """
    seen: list[int] = []

    def note(number: int, _: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    if threading.current_thread() is not threading.main_thread():  # signals go to that one alone
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def described(one: Round) -> str:
    """A round in a line."""
    return f"loss {one.loss:.2f} bits per token; validation {one.bits:.3f} bits per byte"


# --- How good it is ------------------------------------------------------------------------------


class Judge:
    """What a network thinks of texts: how likely it finds each token.

    Args:
        model: the network, from tokens (batch, time) to logits.
        context: how many tokens it may look back on.
        rows: how many texts are read together.
    """

    def __init__(self, model: nn.Module, context: int, rows: int = 8) -> None:
        self.context, self._rows = context, rows

        @palto.compile
        def losses(tokens: palto.Tensor, following: palto.Tensor) -> palto.Tensor:
            with palto.no_grad():
                return nn.functional.cross_entropy(model(tokens), following, reduction="none")

        self._losses = losses

    def bits(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each token of each text but the first, by how many bits it is unexpected.

        Args:
            texts: each of 2 to context + 1 tokens.
        """
        found: list[np.ndarray] = [np.zeros(0)] * len(texts)
        # Those of about one length go together, for shorter ones are filled up.
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
        for first in range(0, len(order), self._rows):
            some = order[first : first + self._rows]
            longest = len(texts[some[-1]]) - 1
            width = self.context // 4 if longest <= self.context // 4 else self.context
            batch = np.zeros((self._rows, width + 1), np.int64)
            for place, k in enumerate(some):
                batch[place, : len(texts[k])] = texts[k]
            result = self._losses(batch[:, :-1], batch[:, 1:]).numpy() / math.log(2)
            for place, k in enumerate(some):
                found[k] = result[place, : len(texts[k]) - 1]
        return found

    def total(self, tokens: Sequence[np.ndarray]) -> float:
        """How many bits the network needs for conversations.

        It reads one after the other; each token is foreseen from at least half a context before it.
        """
        whole, half = np.concatenate(tokens), self.context // 2
        starts = range(0, max(len(whole) - 1 - half, 1), half)
        found = self.bits([whole[k : k + 2 * half + 1] for k in starts])
        return sum(float(x[half if k else 0 :].sum()) for k, x in enumerate(found))


def bits_of_xz(learn: Dialogues, test: Dialogues) -> float:
    """Bits per byte of `as_bytes` by which xz grows when it packs the test after all else."""
    before, more = as_bytes(learn), as_bytes(test)
    sizes = [len(lzma.compress(x, preset=9 | lzma.PRESET_EXTREME)) for x in (before, before + more)]
    return 8 * (sizes[1] - sizes[0]) / len(more)


def examine(training: Training, watch: Watch) -> dict[str, Any]:
    """The test, on conversations that were neither learned from nor used to choose anything.

    "bits per byte" of the network and of xz, and "reply ranking": the share of replies that are
    found among ten, by the network's matcher and by common words; with how many turns these compare
    a reply is chosen on the conversations for validation.
    """
    learn, plan = training.learn, training.plan
    watch("test", 0.1, "bits per byte")
    tests: dict[str, Any] = {
        "text": {
            "conversations": [len(x) for x in (learn, training.validation, training.test)],
            "bytes": [len(as_bytes(x)) for x in (learn, training.validation, training.test)],
        },
        "bits per byte": {"network": round(training.bits_per_byte(training.test), 4)},
    }
    watch("test", 0.4, "xz")
    tests["bits per byte"]["xz"] = round(bits_of_xz(learn, training.test), 4)
    if not plan.questions or min(len(training.validation), len(training.test)) < replies.CHOICES:
        return tests
    chosen, asked = (
        replies.questions(x, count, plan.seed)
        for x, count in (
            (training.validation, max(plan.questions // 2, 1)),
            (training.test, plan.questions),
        )
    )
    spans = (1, 2, 4, 8, 1000)
    watch("test", 0.7, "finding replies")
    last = max(spans, key=lambda k: replies.share_right(replies.by_words(learn, chosen, k)))
    by_words = replies.by_words(learn, asked, last)
    tests["reply ranking"] = {
        "network": round(replies.share_right(training.matches(asked)), 4),
        "TF-IDF": round(replies.share_right(by_words), 4),
        "questions": len(asked),
        "turns compared by TF-IDF": last,
    }
    return tests


# --- A folder as other programs know it ----------------------------------------------------------

#: How the files of the weights are called.
NAME = "model"


def round_weights(model: nn.Module) -> None:
    """Keep of each weight what bfloat16 can hold, as the file will."""
    for parameter in model.parameters():
        value = parameter.read().detach()
        parameter.assign(palto.astype(palto.astype(value, palto.bfloat16), value.dtype))


def save_model(training: Training, tests: dict[str, Any], command: str) -> dict[str, Any]:
    """Write what the run has learned into its folder, in Hugging Face's form; return the record.

    model.safetensors in bfloat16, config.json, tokenizer.json, tokenizer_config.json, and the
    record model.json.
    """
    folder, plan = training.folder, training.plan
    tokenizer = training.tokenizer
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": plan.width,
        "intermediate_size": plan.hidden,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": plan.heads,
        "num_key_value_heads": plan.heads,
        "head_dim": plan.width // plan.heads,
        "max_position_embeddings": plan.context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.token_to_id(START),
        "eos_token_id": tokenizer.token_to_id(END),
        "torch_dtype": "bfloat16",
    }
    layout = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "chat_template": TEMPLATE,
        "model_max_length": plan.context,
        "clean_up_tokenization_spaces": False,
    }
    for name, value in (("config.json", config), ("tokenizer_config.json", layout)):
        write_whole(folder / name, (json.dumps(value, indent=1) + "\n").encode())
    about = {
        "command": command,
        "plan": asdict(plan),
        "parameters": sum(x.size for x in training.model.parameters()),
        "rounds": [asdict(x) for x in training.rounds],
        "training seconds": training.rounds[-1].seconds,
        "tests": tests,
    }
    return save_weights(folder, NAME, training.model, about, dtype=palto.bfloat16)


def load_model(folder: str | os.PathLike[str]) -> tuple[LanguageModel, Any, dict[str, Any]]:
    """A trained network, its tokenizer, and the record of how it came to be.

    Raises:
        FileNotFoundError, ValueError: see `palto.train.load_weights`.
    """
    where = Path(folder)
    record_file = where / f"{NAME}.json"
    if not record_file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no trained {NAME} ({NAME}.json is missing); a folder of `palto train "
            "chat` has one when the training is over"
        )
    tokenizer = _opened_tokenizer(where / "tokenizer.json")
    plan = Plan(**json.loads(record_file.read_text(encoding="utf-8"))["plan"])
    model = LanguageModel(plan, tokenizer.get_vocab_size())
    return model, tokenizer, load_weights(folder, NAME, model, made_by="palto train chat")


# --- A larger network learns the tone ------------------------------------------------------------


@dataclass(frozen=True)
class Tune:
    """How a network that can talk already learns from conversations."""

    minutes: float = 10.0
    """How long to learn; how many steps that makes is measured in the first ones."""
    steps: int = 0
    """Steps of the optimiser; 0: as many as the minutes allow."""
    rank: int = 8
    """The width of the small layers that learn."""
    alpha: float = 16.0
    """How much their corrections count, in units of their rank."""
    context: int = 256
    """Tokens in a row."""
    batch_size: int = 2
    """Rows in a step."""
    lr: float = 1e-3
    """The learning rate that warming up leads to; it then falls to zero."""
    share: float = 0.05
    """The share of the conversations for validation, and for the test."""
    measured: int = 20
    """How many conversations of the test are read before and after."""
    seed: int = 0
    """Of everything that is random."""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: a number out of range.
        """
        for name in ("rank", "batch_size", "measured"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, got {self.steps}")
        for name in ("lr", "minutes", "alpha"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 < self.share < 0.5:
            raise ValueError(f"share must be between 0 and 0.5, got {self.share}")
        _check_context(self.context)


class Tuning(Learning):
    """A run of `palto tune chat` in a folder.

    Args:
        folder: where it lies, or will lie.
        plan: how to train.
        dialogues: what to learn from, and to measure on.
        chat: the network, as `palto.chat.models.load` gives it; small layers are put into it.

    Raises:
        ValueError: too little to learn from, rows longer than the network looks back on; or see
            `Learning`.
        OSError: the folder cannot be written to.
    """

    WARMUP, TIMED = 20, slice(3, 13)

    def __init__(
        self, folder: str | os.PathLike[str], plan: Tune, dialogues: Dialogues, chat: ChatModel
    ) -> None:
        if plan.context > chat.context:
            raise ValueError(
                f"context must be at most {chat.context}, which {chat.name} looks back on, got "
                f"{plan.context}"
            )
        learn, validation, test = dialogues.split(plan.share)
        self._chat = chat
        self.test, self._held = (
            Dialogues(x[k] for k in range(min(plan.measured, len(x)))) for x in (test, validation)
        )
        tokens = self._encoded(learn)
        self.batches = Batches(tokens, plan.context, plan.batch_size, plan.seed)
        palto.manual_seed(plan.seed)
        self.model = nn.lora.adapt(chat.model, plan.rank, plan.alpha)
        self.adapter = nn.lora.Adapter(self.model)
        optimizer = optim.Adam(self.adapter, lr=plan.lr, eps=EPS)
        super().__init__(folder, plan, self.adapter, optimizer, _hash(tokens))
        self._judge = Judge(self.model, plan.context, rows=plan.batch_size)
        self._step = compiled_step(self.model, self.adapter, optimizer)

    def step(self, tokens: np.ndarray, following: np.ndarray) -> palto.Tensor:
        """Learn from a batch; its loss, in nats per token."""
        return self._step(tokens, following)

    def validate(self) -> float:
        """Bits per byte of some of the conversations for validation."""
        return self.bits_per_byte(self._held)

    def bits_per_byte(self, dialogues: Dialogues) -> float:
        """Bits that the network needs for each byte of `as_bytes`.

        What its chat template adds, such as who speaks, it has to foresee, too.
        """
        return self._judge.total(self._encoded(dialogues)) / len(as_bytes(dialogues))

    def examine(self, watch: Watch) -> dict[str, Any]:
        """Bits per byte of some conversations of the test, before and after."""
        watch("test", 0.0, "after")
        after = self.bits_per_byte(self.test)
        learned = {name: x for name, x in self.adapter.state_dict().items() if "lora_B" in name}
        watch("test", 0.5, "before")
        zeros = {name: palto.zeros_like(x) for name, x in learned.items()}
        self.adapter.load_state_dict(zeros, strict=False)
        before = self.bits_per_byte(self.test)
        self.adapter.load_state_dict(learned, strict=False)
        return {
            "conversations": len(self.test),
            "bytes": len(as_bytes(self.test)),
            "bits per byte": {"before": round(before, 4), "after": round(after, 4)},
        }

    def save(self, tests: dict[str, Any], command: str) -> dict[str, Any]:
        """Write the adapter as PEFT has it, and its record adapter_model.json, and return that."""
        about = {
            "command": command,
            "model": self._chat.name,
            "plan": asdict(self.plan),
            "parameters": sum(x.size for x in self.adapter.parameters()),
            "rounds": [asdict(x) for x in self.rounds],
            "training seconds": self.rounds[-1].seconds,
            "tests": tests,
        }
        config = nn.lora.config(self.model) | {"base_model_name_or_path": self._chat.name}
        write_whole(
            self.folder / "adapter_config.json", (json.dumps(config, indent=1) + "\n").encode()
        )
        return save_weights(self.folder, "adapter_model", self.adapter, about, dtype=palto.bfloat16)

    def _encoded(self, dialogues: Dialogues) -> list[np.ndarray]:
        """The tokens of each conversation, in the network's own layout."""
        tokenizer = self._chat.tokenizer
        return [
            np.array(tokenizer.encode(tokenizer.lay_out(_in_roles(turns), answer=False)), np.int64)
            for turns in dialogues
        ]


def _in_roles(turns: Sequence[Turn]) -> list[Any]:
    """Turns as chat templates take them; who speaks first is the user where no roles are given."""
    speakers = list(dict.fromkeys(turn.speaker for turn in turns))
    roles = dict(zip(speakers, ("user", *["assistant"] * len(speakers)), strict=False))
    if set(speakers) <= {"system", "user", "assistant"}:
        roles = {speaker: speaker for speaker in speakers}
    return [{"role": roles[turn.speaker], "content": turn.text} for turn in turns]
