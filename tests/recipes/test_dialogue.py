"""Learning to converse: tokens, batches, resumption, measures, the folder, LoRA, the commands."""

import io
import json
import os
import signal
import sys

import numpy as np
import pytest

import palto
from palto import cli, data, nn
from palto.chat import replies
from palto.chat.replies import Matcher, Question
from palto.data import Dialogues, Turn
from palto.recipes import dialogue
from palto.recipes.dialogue import Batches, Judge, Plan, Training, Tune, Tuning
from palto.train import TrainingStopped

tokenizers = pytest.importorskip(
    "tokenizers", reason="tokenizers is not installed (pip install 'palto[chat]')"
)
pytest.importorskip("jinja2", reason="jinja2 is not installed (pip install 'palto[chat]')")
models = pytest.importorskip("palto.chat.models")

WORDS = [
    "hello", "how", "are", "you", "today", "fine", "thanks", "what", "about", "the", "weather",
    "nice", "do", "like", "cats", "tea",
]  # fmt: skip
SHORT = {
    "steps": 6, "vocabulary": 280, "width": 16, "layers": 1, "heads": 2, "hidden": 32,
    "context": 32, "batch_size": 2, "questions": 4, "share": 0.2,
}  # fmt: skip


def talks(count=60):
    """Conversations of random words, in which every answer repeats the question's last word."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        turns, last = [], "hello"
        for k in range(int(rng.integers(2, 7))):
            last, words = str(rng.choice(WORDS)), [last, *rng.choice(WORDS, 2)]
            turns.append(Turn("ab"[k % 2], " ".join([*words, last])))
        found.append(turns)
    return Dialogues(found, name="talks")


@pytest.fixture
def rounds_are_short(monkeypatch):
    monkeypatch.setattr(dialogue, "ROUND_STEPS", 2)


def weights(module):
    return {name: x.numpy() for name, x in module.state_dict().items()}


def unwatched(*_):
    pass


# --- Tokens --------------------------------------------------------------------------------------


def test_all_text_comes_back_from_its_tokens():
    tokenizer = dialogue.new_tokenizer(talks(), 300)
    assert tokenizer.get_vocab_size() <= 300
    said = ["hello\nhow are you", "Привет, 世界 🦆\t\x00", "<|end|> is what I write <|start|>"]
    (tokens,) = dialogue.encoded(tokenizer, Dialogues([[Turn("a", x) for x in said]]))
    start, end = (tokenizer.token_to_id(x) for x in (dialogue.START, dialogue.END))
    assert tokens[0] == start and tokens[-1] == end
    ends = np.flatnonzero(tokens == end)  # what somebody writes is no mark
    assert len(ends) == 3 and (tokens == start).sum() == 1
    parts = np.split(tokens[1:], ends)[:3]
    assert [tokenizer.decode(part.tolist()) for part in parts] == said


def test_the_text_that_is_measured():
    dialogues = Dialogues([[Turn("a", "hi"), Turn("b", "яя")], [Turn("a", "x")]])
    assert dialogue.as_bytes(dialogues) == b"\x02hi\x03" + "яя".encode() + b"\x03\x02x\x03"


def test_batches_hold_everything_once_in_each_epoch():
    pieces = [np.arange(k * 100, k * 100 + 17 + k) for k in range(6)]
    batches = Batches(pieces, context=8, batch_size=3, seed=0)
    total = sum(map(len, pieces))
    assert batches.epoch_steps == (total - 1) // 8 // 3
    seen = []
    for step in range(batches.epoch_steps):
        tokens, following = batches.batch(step)
        assert tokens.shape == following.shape == (3, 8)
        np.testing.assert_array_equal(tokens[:, 1:], following[:, :-1])
        seen += tokens.ravel().tolist()
    assert len(set(seen)) == len(seen) >= total - 1 - 3 * 8
    again = Batches(pieces, context=8, batch_size=3, seed=0)
    for step in (batches.epoch_steps, 1):  # another order, and back
        np.testing.assert_array_equal(again.batch(step)[0], batches.batch(step)[0])
    assert not np.array_equal(batches.batch(0)[0], batches.batch(batches.epoch_steps)[0])
    with pytest.raises(ValueError, match=r"117 tokens, where a step wants 3 rows of 64"):
        Batches(pieces, context=64, batch_size=3, seed=0)


# --- Measures ------------------------------------------------------------------------------------


class Uniform(nn.Module):
    """Finds all of 7 tokens equally likely, but for token 3, which is e times as likely."""

    def forward(self, tokens):
        logits = palto.zeros((*tokens.shape, 7)).at[..., 3].set(1.0)
        return logits + 0.0 * palto.astype(tokens, palto.float32)[..., None]


def test_bits_of_long_texts_are_counted_once():
    judge = Judge(Uniform(), context=16, rows=3)
    rng = np.random.default_rng(0)
    texts = [rng.integers(7, size=n) for n in (101, 5, 30)]
    norm = np.log2(6 + np.e)
    whole = np.concatenate(texts)[1:]
    expected = len(whole) * norm - (whole == 3).sum() * np.log2(np.e)
    assert judge.total(texts) == pytest.approx(expected, rel=1e-5)
    for length in (2, 4, 9, 16, 17):
        (bits,) = judge.bits([np.full(length, 3)])
        np.testing.assert_allclose(bits, np.full(length - 1, norm - np.log2(np.e)), rtol=1e-5)


def test_questions_are_about_other_conversations():
    asked = replies.questions(talks(), 20, seed=1)
    assert len(asked) == 20
    texts = [[turn.text for turn in turns] for turns in talks()]
    for said, choices in asked:
        whose = next(k for k, x in enumerate(texts) if x[: len(said)] == said)
        assert texts[whose][len(said)] == choices[0]
        assert len(choices) == 10 and choices[0] not in choices[1:]
    with pytest.raises(ValueError, match="ten conversations"):
        replies.questions(talks(9), 1, seed=1)


def test_shares_and_scores():
    scores = np.array([[2.0, 1, 0], [1, 2, 0], [1, 1, 0]])  # a tie is not found
    assert replies.share_right(scores) == pytest.approx(1 / 3)
    question = Question(["do you like cats"], ["cats are nice", "the weather is fine"])
    scores = replies.by_words(talks(), [question], 1)
    assert scores[0, 0] > 0 == scores[0, 1]


def turns_of(row, start, end):
    """The turns of a row, the last one first: its words, whose conversation, whether it is cut."""
    found, words, talk = [], [], 0
    for token in row:
        if token == start:
            talk, words = talk + 1, []
        elif token == end:
            found.append((words, talk))
            words = []
        else:
            words.append(token)
    return found[::-1]


def test_matcher_knows_the_words_of_the_last_turns():
    start, end, rng = 0, 1, np.random.default_rng(0)
    rows = rng.integers(2, 9, (3, 40))
    rows[rng.random(rows.shape) < 0.25] = end
    rows[0, 17], rows[1, 0] = start, start
    matcher = Matcher(9, 4, start, end)
    table = matcher.words.weight.numpy()
    hidden = palto.asarray(rng.normal(size=(3, 40, 4)).astype(np.float32))
    whole, begins, bags, ends = matcher._turns(palto.asarray(rows), hidden)
    for k, row in enumerate(rows):
        turns = turns_of(row, start, end)
        marks = np.flatnonzero(row == end)[::-1]
        for i, (_, talk) in enumerate(turns[: matcher.TURNS]):
            np.testing.assert_array_equal(ends.numpy()[k, i], hidden.numpy()[k, marks[i]])
            assert whole.numpy()[k, i] == (i + 1 < len(turns))
            before = turns[i + 1][1] if i + 1 < len(turns) else int(row[0] != start) - 1
            assert begins.numpy()[k, i] == (talk != max(before, 0))
            for span, bag in zip(matcher.SPANS, bags, strict=True):
                words = [x for turn, whose in turns[i : i + span] if whose == talk for x in turn]
                expected = table[words].sum(0) / np.sqrt(len(words) + 1)
                np.testing.assert_allclose(bag.numpy()[k, i], expected, atol=1e-5)
    assert not whole.numpy()[:, 23].any()

    # A reply's score is the same beside others, and in the loss.
    replies_ = np.array([[[3, 4, end, 0], [5, end, 0, 0]]] * 3)
    scores = matcher(palto.asarray(rows), hidden, palto.asarray(replies_)).numpy()
    assert scores.shape == (3, 2)
    swapped = matcher(palto.asarray(rows), hidden, palto.asarray(replies_[:, ::-1])).numpy()
    np.testing.assert_allclose(scores, swapped[:, ::-1], rtol=1e-5)
    told = float(matcher.loss(palto.asarray(rows), hidden))
    assert 0 < told < 10


def test_matcher_learns_whose_words_come_back():
    palto.manual_seed(0)
    start, end, rng = 0, 1, np.random.default_rng(0)

    def batch(count):  # each conversation is about one word
        topics = rng.permutation(np.arange(2, 12))[:count]
        return np.array([[start] + [topic, topic, end] * 5 for topic in topics])

    matcher = Matcher(12, 8, start, end)
    hidden = palto.zeros((4, 16, 8))
    optimizer = palto.optim.Adam(matcher, lr=0.02)

    @palto.compile
    def step(tokens):
        loss = matcher.loss(tokens, hidden)
        loss.backward()
        optimizer.step()
        return loss

    losses = [float(step(batch(4))) for _ in range(60)]
    assert losses[0] > 1.0 > 0.2 > losses[-1]
    rows = batch(4)
    choices = np.repeat(rows[None, :, 1:4], 4, axis=0)
    scores = matcher(palto.asarray(rows), hidden, palto.asarray(choices)).numpy()
    np.testing.assert_array_equal(scores.argmax(1), np.arange(4))


# --- Learning ------------------------------------------------------------------------------------


def test_a_few_conversations_are_learned_by_heart(tmp_path):
    plan = Plan(**SHORT | {"steps": 250, "width": 32, "hidden": 64, "lr": 1e-2})
    training = Training(tmp_path, plan, talks(7))
    before = training.bits_per_byte(training.learn)
    training.run(unwatched)
    after = training.bits_per_byte(training.learn)
    assert after < 1 < 2 < before
    assert after < training.bits_per_byte(training.test) - 0.5  # which nobody could know
    assert not {training.learn[k] for k in range(5)} & {training.test[0], training.validation[0]}


def test_a_training_goes_on_to_the_bit(tmp_path, rounds_are_short):
    plan = Plan(**SHORT)
    whole = Training(tmp_path / "whole", plan, talks())
    whole.run(unwatched)
    assert [x.steps for x in whole.rounds] == [2, 4, 6]

    parts = Training(tmp_path / "parts", plan, talks())
    take = parts.step

    def interrupted(*batch):
        loss = take(*batch)
        if int(parts.optimizer.count.numpy()) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    parts.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        parts.run(unwatched)
    assert [(x.steps, x.bits is None) for x in parts.rounds] == [(2, False), (3, True)]
    parts = Training(tmp_path / "parts", plan, talks())
    parts.run(unwatched)
    assert [x.steps for x in parts.rounds] == [2, 3, 4, 6]
    found = weights(parts.model)
    for name, value in weights(whole.model).items():
        np.testing.assert_array_equal(found[name], value)
    assert parts.rounds[-1].bits == whole.rounds[-1].bits

    with pytest.raises(ValueError, match="other conversations"):
        Training(tmp_path / "parts", plan, talks(59))
    with pytest.raises(ValueError, match="same options"):
        Training(tmp_path / "parts", Plan(**SHORT | {"lr": 1e-3}), talks())


def test_minutes_become_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "TIMED", slice(1, 3))
    monkeypatch.setattr(Training, "WARMUP", 5)
    training = Training(tmp_path, Plan(**SHORT | {"steps": 0, "minutes": 1e-7}), talks())
    training.run(unwatched)
    assert training.rounds[-1].of == training.rounds[-1].steps == 5


def test_numbers_that_are_not_finite_end_it_with_a_word(tmp_path):
    training = Training(tmp_path, Plan(**SHORT), talks())
    nn.init.constant_(training.model.model.norm.weight, float("nan"))
    with pytest.raises(TrainingStopped, match=r"step 1: .*not finite.*lower --lr in another"):
        training.run(unwatched)
    assert not training.rounds


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1}, {"lr": 0.0}, {"minutes": float("nan")}, {"vocabulary": 200}, {"share": 0.5},
        {"context": 33}, {"width": 20, "heads": 4}, {"layers": 0}, {"questions": -1},
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Plan(**wrong)


# --- The commands --------------------------------------------------------------------------------


def command(capsys, *words):
    try:
        status = cli.main([str(x) for x in words])
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    return status, out, err


def written(path, dialogues):
    lines = (json.dumps([{"role": x.speaker, "content": x.text} for x in t]) for t in dialogues)
    path.write_text("\n".join(lines))
    return path


def test_from_a_file_to_a_model_and_its_adapter(tmp_path, capsys, monkeypatch):
    file, run = written(tmp_path / "talks.jsonl", talks()), tmp_path / "run"
    options = [x for name, value in SHORT.items() for x in (f"--{name.replace('_', '-')}", value)]
    status, out, err = command(capsys, "train", "chat", "--data", file, "--out", run, *options)
    assert status == 0, err
    assert "TF-IDF" in out and f"palto chat --model {run}" in out
    record = json.loads((run / "model.json").read_text())
    assert record["tests"]["text"]["conversations"] == [36, 12, 12]
    assert set(record["tests"]["bits per byte"]) == {"network", "xz"}
    assert 0 <= record["tests"]["reply ranking"]["network"] <= 1
    assert "<svg" in (run / "rounds.svg").read_text()

    # As any program knows it that reads Hugging Face's folders.
    model, tokenizer, _ = dialogue.load_model(run)
    chat = models.load(run)
    (tokens,) = dialogue.encoded(tokenizer, Dialogues([[Turn("a", "hello how"), Turn("b", "hi")]]))
    turns = [{"role": "user", "content": "hello how"}, {"role": "assistant", "content": "hi"}]
    assert chat.tokenizer.prompt(turns) == tokens.tolist()
    assert chat.tokenizer.ends == {tokens[-1]}
    np.testing.assert_allclose(
        chat.model(tokens[None]).numpy(), model(tokens[None]).numpy(), rtol=1e-5, atol=1e-6
    )

    # Its context is shorter than what `palto chat` reads at once of longer ones.
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi"))
    status, out, err = command(capsys, "chat", "--model", run, "--stats")
    assert status == 0 and "tokens read" in err, err

    tuned = tmp_path / "tuned"
    words = ["tune", "chat", "--model", run, "--data", file, "--out", tuned, "--context", 32]
    status, out, err = command(capsys, *words, "--steps", 40, "--lr", 0.03, "--share", 0.2)
    assert status == 0, err
    bits = json.loads((tuned / "adapter_model.json").read_text())["tests"]["bits per byte"]
    assert bits["after"] < bits["before"]
    assert f"palto chat --model {run} --adapter {tuned}" in out
    adapted = models.load(run, tuned)
    changes = adapted.model(tokens[None]).numpy() - chat.model(tokens[None]).numpy()
    assert np.abs(changes).max() > 0.01
    assert len(nn.lora.adapters(adapted.model)) == 7

    # The tuning as it was measured.
    plan = Tune(steps=1, context=32, share=0.2, measured=12)
    tuning = Tuning(tmp_path / "other", plan, talks(), adapted := models.load(run))
    state = palto.formats.safetensors.load(tuned / "adapter_model.safetensors")
    tuning.adapter.load_state_dict({x: state[x] for x in tuning.adapter.state_dict()})
    assert tuning.bits_per_byte(tuning.test) == pytest.approx(bits["after"], abs=2e-4)
    assert adapted.model is tuning.model


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "chat", "--data", "none.jsonl"], "no file or folder none.jsonl"),
        (["train", "chat", "--data", "two.jsonl"], "three or more"),
        (["train", "chat", "--data", "broken.jsonl"], "line 2: a message has"),
        (["train", "chat", "--data", "few.jsonl"], "too little to learn from"),
        (["train", "chat", "--width", "31"], "heads of an even width"),
        (["train", "chitchat"], "`palto train chat` learns from them"),
        (["tune", "chat", "--data", "few.jsonl", "--model", "none"], "none"),
        (["tune", "chat", "--data", "few.jsonl", "--context", "512"], "at most 256"),
        (["tune", "chat", "--rank", "0"], "rank"),
        (["chat", "--adapter", "none", "hello"], "no adapter"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, capsys, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "chitchat", talks)
    nobody = models.ChatModel("nobody", nn.Linear(1, 1), None, 256)
    monkeypatch.setattr(models.Files, "path", lambda *_: tmp_path / "model.gguf")
    read = models._from_gguf
    monkeypatch.setattr(
        models, "_from_gguf", lambda path: nobody if path.name == "model.gguf" else read(path)
    )
    written(tmp_path / "two.jsonl", talks(2))
    written(tmp_path / "few.jsonl", talks(3))
    (tmp_path / "broken.jsonl").write_text('[]\n[{"role": 1}]')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    status, _, err = command(capsys, *words)
    assert status == 2
    assert told in err
    assert "Traceback" not in err
    for path, content in before.items():
        assert path.read_bytes() == content
