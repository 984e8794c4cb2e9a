"""Tokens: what a language model reads and writes, and how a conversation is laid out for it."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from palto.chat.turns import Turn
from palto.extras import require

#: How many characters a conversation may take as the model reads it.
MOST_CHARACTERS = 1 << 22


class Tokenizer:
    """Text as tokens, and back.

    Args:
        library: a tokenizer of the library `tokenizers`.
        template: how a conversation is laid out, as a text of Jinja's; None if the model has only
            learned to go on with a text.
        special: the texts of special tokens that a template may name, such as "bos_token".
        ends: the tokens that end an answer.
        begin: the token that every text begins with, where no template says so.

    Attributes:
        ends: as given.
        vocabulary: how many tokens there are.
    """

    def __init__(
        self,
        library: Any,
        *,
        template: str | None,
        special: Mapping[str, str],
        ends: Iterable[int],
        begin: int | None = None,
    ) -> None:
        self._library = library
        self._begin = begin
        self.ends = frozenset(ends)
        self.vocabulary = int(library.get_vocab_size())
        self._template = None if template is None else _Template(template, special)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text. The names of special tokens in it stand for these."""
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones; bytes that are no text become U+FFFD."""
        return str(self._library.decode(list(tokens), skip_special_tokens=True))

    def lay_out(self, turns: Sequence[Turn], *, answer: bool = True) -> str:
        """A conversation as the model reads it.

        Without a template it is the turns' texts, one a line, with which the model goes on.

        Args:
            turns: who said what.
            answer: whether the beginning of an answer comes after them.

        Raises:
            ValueError: the model's template does not take such a conversation.
        """
        if self._template is None:
            return "\n".join(turn["content"] for turn in turns)
        return self._template(turns, answer)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The tokens of a conversation, up to the beginning of the answer; see `lay_out`."""
        tokens = self.encode(self.lay_out(turns))
        begins = self._template is None and self._begin is not None
        return [self._begin, *tokens] if begins else tokens  # type: ignore[list-item]

    def stream(self) -> TextStream:
        """The text of tokens that come one after the other."""
        return TextStream(self, self._library)


class TextStream:
    """The text of tokens as they come: a character waits until all its bytes are there."""

    def __init__(self, tokenizer: Tokenizer, library: Any) -> None:
        decoders = require("tokenizers.decoders", "chat", "text of tokens")
        self._tokenizer, self._library = tokenizer, library
        self._decoder = decoders.DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._given = 0

    def add(self, token: int) -> str:
        """What is new with the next token; "" while a character is not whole."""
        self._tokens.append(token)
        text = self._decoder.step(self._library, token) or ""
        self._given += len(text)
        return text

    def rest(self) -> str:
        """What is left at the end: bytes that have not become a character, as U+FFFD."""
        return self._tokenizer.decode(self._tokens)[self._given :]


class Stops:
    """Ends a text where one of some strings comes; what may begin one waits."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [string for string in strings if string]
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What may be shown after more text has come."""
        if not self._strings or self.found:
            return "" if self.found else text
        text = self._held + text
        places = [place for string in self._strings if (place := text.find(string)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        kept = max(
            (k for s in self._strings for k in range(1, len(s)) if text.endswith(s[:k])), default=0
        )
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def rest(self) -> str:
        """What has waited, at the end."""
        held, self._held = self._held, ""
        return held


class _Template:
    """A conversation's layout, from a model's file: Jinja's language, in its sandbox."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        jinja2 = require("jinja2", "chat", "a chat template")
        sandbox = require("jinja2.sandbox", "chat", "a chat template")
        self._trouble: Any = (jinja2.TemplateError, ArithmeticError, TypeError, ValueError,
                              LookupError, RecursionError, AttributeError)  # fmt: skip

        class Environment(sandbox.ImmutableSandboxedEnvironment):  # type: ignore[misc, name-defined]
            intercepted_binops = frozenset(["*", "**"])

            def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
                """Texts and lists are not multiplied without measure, nor powers taken."""
                sizes = [len(x) if isinstance(x, str | list | tuple) else x for x in (left, right)]
                if operator == "**" or math.prod(sizes) > MOST_CHARACTERS:
                    raise ValueError(f"{operator} of such numbers is not for a chat template")
                return super().call_binop(context, operator, left, right)

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        def as_json(value: Any, indent: int | None = None) -> str:
            return json.dumps(value, ensure_ascii=False, indent=indent)

        environment = Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = as_json
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._special = dict(special)
        try:
            self._template = environment.from_string(source)
        except self._trouble as error:
            raise ValueError(f"the model's chat template cannot be read: {error}") from None

    def __call__(self, turns: Sequence[Turn], answer: bool) -> str:
        pieces, length = [], 0
        try:
            for piece in self._template.generate(
                messages=[dict(turn) for turn in turns], tools=None, documents=None,
                add_generation_prompt=answer, **self._special,
            ):  # fmt: skip
                pieces.append(piece)
                length += len(piece)
                if length > MOST_CHARACTERS:
                    raise ValueError(f"it has more than {MOST_CHARACTERS:,} characters")
        except self._trouble as error:
            raise ValueError(
                f"the model's chat template does not take this conversation: {error}"
            ) from None
        return "".join(pieces)


# --- From a GGUF file ----------------------------------------------------------------------------

#: How text is cut before pairs are merged, by the name in GGUF files: a pattern, or None for
#: GPT-2's own; and whether digits stand alone.
_CUTS: dict[str, tuple[str | None, bool]] = {
    "default": (None, False),
    "gpt-2": (None, False),
    "smollm": (None, True),
    "starcoder": (None, True),
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
    ),
}
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens in GGUF files
#: The types of what a GGUF file says of its tokenizer; lists of numbers are arrays.
_TYPES: dict[str, Any] = {
    "model": str, "pre": str, "merges": list, "token_type": np.ndarray | tuple,
    "scores": np.ndarray, "unknown_token_id": int,
}  # fmt: skip
_LONGEST_PIECE = 1000  # characters; all cuts of a piece are looked at


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    Raises:
        ValueError: it describes none, or one that is not known here.
    """
    known = {key.removeprefix("tokenizer."): value for key, value in metadata.items()}
    for name, kind in _TYPES.items():
        value = known.get(f"ggml.{name}")
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"the file's tokenizer.ggml.{name} cannot be {str(value)[:60]!r}")
    texts, kinds = known.get("ggml.tokens"), known.get("ggml.token_type", ())
    if not isinstance(texts, list) or not texts or len(kinds) not in (0, len(texts)):
        raise ValueError("the file has no list of tokens, so it has no tokenizer")
    vocabulary = {text: number for number, text in enumerate(texts)}
    if len(vocabulary) < len(texts):
        raise ValueError("the file's tokenizer has two tokens of the same text")
    makers = {"gpt2": _byte_pairs, "llama": _sentence_pieces}
    maker = makers.get(known.get("ggml.model", ""))
    if maker is None:
        raise ValueError(
            f"the file's tokenizer is of the kind {known.get('ggml.model')!r}; those that are read "
            f"are {', '.join(makers)}"
        )
    library = maker(known, vocabulary)
    added = require("tokenizers", "chat", "a tokenizer").AddedToken
    for kind, is_special in ((_CONTROL, True), (_USER_DEFINED, False)):
        named = [text for text, k in zip(texts, kinds, strict=False) if k == kind]
        tokens = [added(text, special=is_special, normalized=False) for text in named if text]
        (library.add_special_tokens if is_special else library.add_tokens)(tokens)

    def number(name: str) -> int | None:
        found = known.get(f"ggml.{name}_token_id")
        return found if isinstance(found, int) and 0 <= found < len(texts) else None

    ends = [number(name) for name in ("eos", "eot", "eom")]
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    found = {names[name]: number(name) for name in names}
    begins = known.get("ggml.add_bos_token", known.get("ggml.model") == "llama")
    template = known.get("chat_template")
    return Tokenizer(
        library,
        template=template if isinstance(template, str) else None,
        special={name: texts[token] for name, token in found.items() if token is not None},
        ends=[token for token in ends if token is not None],
        begin=number("bos") if begins else None,
    )


def _byte_pairs(known: Mapping[str, Any], vocabulary: dict[str, int]) -> Any:
    """GPT-2's kind: bytes that are merged by a list of pairs."""
    tokenizers = require("tokenizers", "chat", "a tokenizer")
    cut = known.get("ggml.pre", "default")
    if cut not in _CUTS:
        raise ValueError(
            f"the file's tokenizer cuts text in the way {cut!r}; those that are known are "
            f"{', '.join(_CUTS)}"
        )
    pattern, digits = _CUTS[cut]
    merges = [tuple(pair.split(" ", 1)) for pair in known.get("ggml.merges", ())]
    model = _bpe(vocabulary, merges, ignore_merges=cut == "llama-bpe")
    library = tokenizers.Tokenizer(model)
    pre, parts = tokenizers.pre_tokenizers, []
    if digits:
        parts.append(pre.Digits(individual_digits=True))
    if pattern is not None:
        parts.append(pre.Split(tokenizers.Regex(pattern), "isolated"))
    parts.append(pre.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    library.pre_tokenizer = pre.Sequence(parts)
    library.decoder = tokenizers.decoders.ByteLevel()
    return library


def _sentence_pieces(known: Mapping[str, Any], vocabulary: dict[str, int]) -> Any:
    """SentencePiece's kind: of two neighbours those are merged that make the best-scored piece."""
    tokenizers = require("tokenizers", "chat", "a tokenizer")
    scores = known.get("ggml.scores", ())
    if len(scores) != len(vocabulary):
        raise ValueError("the file's tokenizer has not a score for each token")
    merges = []
    if max(map(len, vocabulary)) > _LONGEST_PIECE:
        raise ValueError(f"the file's tokenizer has a token of over {_LONGEST_PIECE} characters")
    for piece, number in vocabulary.items():
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        pairs = [(a, b) for a, b in cuts if a in vocabulary and b in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(float(scores[number]), pair) for pair in pairs]
    merges.sort(key=lambda merge: merge[0], reverse=True)
    unknown = known.get("ggml.unknown_token_id", 0)
    model = _bpe(
        vocabulary, [pair for _, pair in merges], fuse_unk=True, byte_fallback=True,
        unk_token=next(islice(vocabulary, int(unknown), None), None),
    )  # fmt: skip
    library = tokenizers.Tokenizer(model)
    normal, decoders = tokenizers.normalizers, tokenizers.decoders
    prefix = known.get("ggml.add_space_prefix", True)
    space = [normal.Replace(" ", "▁")]
    library.normalizer = normal.Sequence([normal.Prepend("▁"), *space] if prefix else space)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    parts += [decoders.Strip(" ", 1, 0)] if prefix else []
    library.decoder = decoders.Sequence(parts)
    return library


def _bpe(vocabulary: dict[str, int], merges: list[tuple[str, ...]], **options: Any) -> Any:
    models = require("tokenizers.models", "chat", "a tokenizer")
    try:
        return models.BPE(vocab=vocabulary, merges=merges, **options)
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"the file's tokenizer is damaged: {error}") from None
