"""Tokens: equal to the libraries' own, streamed whole; templates in their sandbox."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palto.chat import models
from palto.chat.tokens import Stops, Tokenizer, from_gguf
from palto.formats import gguf

from .tiny import TEXT

texts = st.one_of(st.text(max_size=40), st.text(alphabet=TEXT + "\n\t  <|>", max_size=60))


@pytest.fixture(scope="module")
def of_file(file):
    return from_gguf(gguf.read(file).metadata)


@given(text=texts)
def test_a_files_tokenizer_is_the_one_that_was_written(tiny, of_file, text):
    tokens = of_file.encode(text)
    assert tokens == tiny.tokenizer.encode(text).ids
    assert of_file.decode(tokens) == tiny.tokenizer.decode(tokens)


@given(text=st.text(max_size=60))
def test_bytes_come_back(of_file, text):
    assert of_file.decode(of_file.encode(text)) == text


def streamed(tokenizer, tokens):
    stream = tokenizer.stream()
    pieces = [stream.add(token) for token in tokens]
    assert not any("\ufffd" in piece for piece in pieces[:-1]) or "\ufffd" in tokenizer.decode(
        tokens
    )
    return pieces, stream.rest()


@given(text=st.text(max_size=60))
def test_a_character_comes_when_it_is_whole(of_file, text):
    pieces, rest = streamed(of_file, of_file.encode(text))
    assert "".join(pieces) == text
    assert not rest


@given(tokens=st.lists(st.integers(0, 319), max_size=30))
def test_whatever_a_model_says_can_be_shown(of_file, tokens):
    """Bytes that are no text become U+FFFD, as in the whole text; nothing is lost or doubled."""
    pieces, rest = streamed(of_file, tokens)
    assert "".join(pieces) + rest == of_file.decode(tokens)
    "".join(pieces).encode()


def test_a_character_of_four_bytes(of_file):
    tokens = of_file.encode("a🙂b")
    pieces, rest = streamed(of_file, tokens)
    assert "".join(pieces) + rest == "a🙂b"
    assert "🙂" in pieces or "🙂b" in pieces
    pieces, rest = streamed(of_file, of_file.encode("a🙂")[:-1])
    assert "".join(pieces) + rest == "a\ufffd"


@given(
    text=st.text(alphabet="ab<>|", max_size=30),
    stops=st.lists(st.text(alphabet="ab<>|", max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 4), max_size=30),
)
def test_texts_that_end_an_answer(text, stops, cuts):
    places = [text.find(stop) for stop in stops if stop and stop in text]
    watch, got, place = Stops(stops), "", 0
    for cut in [*cuts, len(text)]:
        got += watch.add(text[place : place + cut])
        place += cut
        assert text.startswith(got)
    got += watch.rest()
    # Of two that overlap, the one that is complete first ends it.
    assert watch.found == bool(places)
    if not places:
        assert got == text
    else:
        ends = min(text.find(stop) + len(stop) for stop in stops if stop and stop in text)
        assert any(text.startswith(stop, len(got)) for stop in stops if stop)
        assert len(got) <= ends


# --- Conversations -------------------------------------------------------------------------------

TURNS = [
    {"role": "user", "content": "Hi {{ 7 * 7 }} <b>"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "été 🙂"},
]


def test_a_conversation_is_laid_out(of_file):
    laid_out = of_file.lay_out(TURNS)
    assert laid_out == (
        "<|im_start|>user\nHi {{ 7 * 7 }} <b><|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nété 🙂<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = of_file.prompt(TURNS)
    assert tokens == of_file.encode(laid_out)
    assert tokens[0] == of_file.encode("<|im_start|>")[0]
    assert of_file.ends == {of_file.encode("<|im_end|>")[0]}
    assert of_file.lay_out(TURNS[:1], answer=False).endswith("<|im_end|>\n")


def with_template(tiny, template, **special):
    return Tokenizer(tiny.tokenizer, template=template, special=special, ends=[])


def test_a_model_without_a_template_goes_on_with_the_text(tiny):
    plain = Tokenizer(tiny.tokenizer, template=None, special={}, ends=[], begin=1)
    assert plain.prompt(TURNS[:1]) == [1, *plain.encode("Hi {{ 7 * 7 }} <b>")]


def test_templates_may_use_what_they_use_elsewhere(tiny):
    found = with_template(
        tiny,
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'skip' %}{% continue %}{% endif %}"
        "{{ m['content'] | trim | tojson }}{% endfor %}"
        "{% if tools is not none %}tools{% endif %}{{ strftime_now('%Y') | length }}",
        bos_token="<s>",
    )
    assert found.lay_out([{"role": "user", "content": " été\n"}]) == '<s>"été"4'


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.append(1) }}",
        "{{ ().__class__.__bases__ }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% for i in range(999999999) %}x{% endfor %}",
        "{{ 'x' * 999999999 }}",
        "{{ ['x'] * 999999999 }}",
        "{{ ('x' * 4000) * 4000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[99].content }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
        "{{ '%s' | format(messages[0].missing.more) }}",
    ],
)
def test_what_a_template_may_not(tiny, template):
    with pytest.raises(ValueError, match="chat template"):
        with_template(tiny, template).lay_out(TURNS)


def test_a_template_that_is_none(tiny):
    with pytest.raises(ValueError, match="cannot be read"):
        with_template(tiny, "{% for %}")


# --- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, "'t5'; those that are read"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken'; those that are known"),
        ({"tokenizer.ggml.tokens": None}, "no list of tokens"),
        ({"tokenizer.ggml.tokens": 7}, "no list of tokens"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": ()}, "same text"),
        ({"tokenizer.ggml.token_type": np.ones(3, np.int32)}, "no list of tokens"),
        ({"tokenizer.ggml.merges": ["no such"]}, "damaged"),
        ({"tokenizer.ggml.merges": ["nospace"]}, "damaged"),
        ({"tokenizer.ggml.model": "llama"}, "score for each"),
    ],
)
def test_tokenizers_that_are_not_read(file, changed, message):
    metadata = {**gguf.read(file).metadata, **changed}
    with pytest.raises(ValueError, match=message):
        from_gguf({key: value for key, value in metadata.items() if value is not None})


def test_a_folder_and_a_file_are_read_alike(folder, file):
    ours, theirs = (models.load(place).tokenizer for place in (folder, file))
    assert ours.prompt(TURNS) == theirs.prompt(TURNS)
    assert ours.ends == theirs.ends


def test_templates_have_several_places_in_a_folder(tiny, tmp_path):
    place = tiny.folder(tmp_path / "x")
    about = json.loads((place / "tokenizer_config.json").read_text())
    about["chat_template"] = [{"name": "default", "template": "A"}, {"name": "b", "template": "B"}]
    (place / "tokenizer_config.json").write_text(json.dumps(about))
    assert models.load(place).tokenizer.lay_out(TURNS) == "A"
    (place / "chat_template.jinja").write_text("C")
    assert models.load(place).tokenizer.lay_out(TURNS) == "C"


PIECES = [
    "<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)),
    "▁", "h", "e", "l", "o", "w", "r", "d", "he", "ll", "hell", "lo", "hello", "▁hello", "▁w",
    "or", "wor", "▁wor", "ld", "world", "▁world",
]  # fmt: skip


def sentence_pieces(text):
    """SentencePiece's rule in plain words: merge the neighbours that make the best piece."""
    scores = {piece: -number for number, piece in enumerate(PIECES)}
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [
            (scores[a + b], -k) for k, (a, b) in enumerate(itertools.pairwise(parts))
            if a + b in scores
        ]  # fmt: skip
        if not pairs:
            break
        place = -max(pairs)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    return [
        token for part in parts
        for token in ([part] if part in scores else [f"<0x{b:02X}>" for b in part.encode()])
    ]  # fmt: skip


@given(text=st.text(alphabet="helowrd é🙂", min_size=1, max_size=20))
def test_pieces_with_scores(text):
    found = from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": PIECES,
            "tokenizer.ggml.scores": -np.arange(len(PIECES), dtype=np.float32),
            "tokenizer.ggml.token_type": np.array(
                [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)]
            ),
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
    )
    tokens = found.encode(text)
    assert [PIECES[token] for token in tokens] == sentence_pieces(text)
    assert found.decode(tokens) == text
    assert found.ends == {2}
    assert found.prompt([{"role": "user", "content": text}])[0] == 1
    pieces, rest = streamed(found, tokens)
    assert "".join(pieces) + rest == text


# --- SmolLM2 -------------------------------------------------------------------------------------

TEXTS = [
    "Hello, how are you?", "  two  spaces\n\n\ttab ", "12345 + 6.7 = 12351.7",
    "été naïve Привет 你好",
    "🙂🇫🇷👩‍👩‍👧", "I'm you're they'll DON'T", "<|im_start|>user\n",
    "def f(x):\n    return x**2", "",
]  # fmt: skip


def test_smollm2_is_read_as_transformers_does():
    transformers = pytest.importorskip(
        "transformers",
        reason="transformers is not installed: checks against it are skipped "
        "(pip install transformers)",
    )
    if not models.FILES.here:
        pytest.skip("SmolLM2 is not in the cache (palto chat fetches it)")
    path = models.FILES.path(models.SMOLLM2)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = from_gguf(gguf.read(path).metadata)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    for turns in (TURNS, [{"role": "system", "content": "Be brief."}, *TURNS]):
        assert ours.lay_out(turns) == theirs.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        wanted = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        assert ours.prompt(turns) == wanted["input_ids"]
    assert theirs.eos_token_id in ours.ends
