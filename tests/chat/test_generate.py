"""Answers: what is read in parts is what is read whole; conversations are not mixed."""

import numpy as np
import pytest

from palto.chat.generate import Answer, Options, Progress, Reader, fit


def some_tokens(count, found):
    return np.random.default_rng(count).integers(0, found.tokenizer.vocabulary, count).tolist()


def whole(found, tokens):
    return found.model(np.array([tokens])).numpy()[0, -1]


def test_a_text_in_parts(found, reader):
    tokens = some_tokens(160, found)
    slot = reader.new_slot()
    place = 0
    for count in (128, 1, 1, 30):
        got = reader.read(slot, tokens[place : place + count])
        place += count
        np.testing.assert_allclose(got, whole(found, tokens[:place]), atol=1e-4)
    assert slot.tokens == tokens
    for count in (1, 2, 1, 5):  # from the beginning, too, a single token
        slot = reader.new_slot()
        got = reader.read(slot, tokens[:count])
        np.testing.assert_allclose(got, whole(found, tokens[:count]), atol=1e-4)


def test_few_programs_serve_all_lengths(found):
    reader = Reader(found, 200)
    reader.warm_up()
    programs = reader.program_count
    assert programs == 2
    tokens = some_tokens(200, found)
    for counts in ((128, 72), (1,) * 10, (2, 50, 3, 1, 128, 16)):
        slot = reader.new_slot()
        for count in counts:
            reader.read(slot, tokens[:count])
    assert len(slot.tokens) == 200  # full to the last place
    assert reader.program_count == programs


def test_conversations_in_turn(found, reader):
    texts = [some_tokens(count, found) for count in (20, 21, 22)]
    slots = [reader.new_slot() for _ in texts]
    for place in range(0, 20, 4):
        for text, slot in zip(texts, slots, strict=True):
            got = reader.read(slot, text[place : place + 4])
            np.testing.assert_allclose(got, whole(found, text[: place + 4]), atol=1e-4)


def test_keys_and_values_lie_where_they_are(found, reader):
    """No step and no change of conversations copies them."""
    slots = [reader.new_slot() for _ in range(2)]
    places = []
    for _ in range(3):
        for slot in slots:
            reader.read(slot, [5])
            places.append([cell.array().ctypes.data for cell in reader.cells])
    assert places[0] == places[2] == places[4]
    assert places[1] == places[3] == places[5]
    assert set(places[0]).isdisjoint(places[1])


def answer(found, reader, slot, prompt, **options):
    made = Answer(found, reader, slot, prompt, Options(**{"temperature": 0, **options}))
    return made, list(made)


def test_an_answer_is_the_likeliest_text(found, reader):
    prompt = some_tokens(10, found)
    slot, options = reader.new_slot(), {"max_tokens": 12, "repetition_penalty": 1.0}
    made, pieces = answer(found, reader, slot, prompt, **options)
    tokens = list(prompt)
    for _ in range(12):
        token = int(whole(found, tokens).argmax())
        if token in found.tokenizer.ends:
            break
        tokens.append(token)
    assert made.text == found.tokenizer.decode(tokens[10:])
    assert made.text == "".join(piece for piece in pieces if isinstance(piece, str))
    assert pieces[0] == Progress(10, 10)
    assert made.count == len(tokens) - 10
    assert made.reason == ("length" if made.count == 12 else "stop")
    assert made.seconds["reading"] > 0 < made.seconds["writing"]


def test_an_answer_ends_at_the_models_word(found, reader, monkeypatch):
    prompt = some_tokens(10, found)
    likeliest = int(whole(found, prompt).argmax())
    monkeypatch.setattr(found.tokenizer, "ends", frozenset([likeliest]))
    made, _ = answer(found, reader, reader.new_slot(), prompt)
    assert (made.text, made.reason, made.count) == ("", "stop", 0)


def test_an_answer_ends_at_a_text(found, reader):
    prompt = some_tokens(12, found)
    long, _ = answer(found, reader, reader.new_slot(), prompt, max_tokens=30)
    stop = long.text[4:6]
    made, _ = answer(found, reader, reader.new_slot(), prompt, max_tokens=30, stop=(stop,))
    assert made.text == long.text[: long.text.find(stop)]
    assert made.reason == "stop"


def test_an_answer_ends_with_the_context(found, reader):
    prompt = some_tokens(190, found)
    made, pieces = answer(found, reader, reader.new_slot(), prompt, max_tokens=99)
    assert [piece for piece in pieces if isinstance(piece, Progress)] == [
        Progress(128, 190), Progress(190, 190),
    ]  # fmt: skip
    assert made.reason == "length"
    assert made.count == 11
    for count in (0, 200):
        with pytest.raises(ValueError, match="from 1 to 199 tokens"):
            answer(found, reader, reader.new_slot(), [0] * count)


def test_only_what_is_new_is_read(found, reader):
    prompt = some_tokens(60, found)
    slot = reader.new_slot()
    first, _ = answer(found, reader, slot, prompt, max_tokens=5)
    assert first.read == 60
    longer = [*slot.tokens, *some_tokens(7, found)]
    second, _ = answer(found, reader, slot, longer, max_tokens=5)
    assert second.read == 7
    fresh, _ = answer(found, reader, reader.new_slot(), longer, max_tokens=5)
    assert (second.text, fresh.read) == (fresh.text, len(longer))
    again, _ = answer(found, reader, slot, prompt, max_tokens=5)  # back
    assert (again.text, again.read) == (first.text, 1)
    other = [*prompt[:30], *some_tokens(8, found)]  # another way from the middle
    branch, _ = answer(found, reader, slot, other, max_tokens=5)
    fresh, _ = answer(found, reader, reader.new_slot(), other, max_tokens=5)
    assert (branch.text, branch.read) == (fresh.text, 8)


def test_a_seed_gives_an_answer_again(found, reader):
    prompt = some_tokens(10, found)

    def text(seed):
        options = {"temperature": 1.5, "seed": seed, "max_tokens": 20}
        return answer(found, reader, reader.new_slot(), prompt, **options)[0].text

    assert text(1) == text(1) != text(2)


# --- Long conversations --------------------------------------------------------------------------


def talk(count, length=20):
    turns = []
    for number in range(count):
        turns.append({"role": "user", "content": f"{number} " + "word " * length})
        turns.append({"role": "assistant", "content": f"answer {number}"})
    return [*turns, {"role": "user", "content": "the last"}]


def test_the_oldest_turns_make_room(found):
    system = [{"role": "system", "content": "Be brief."}]
    short = fit(found, [*system, *talk(1, 2)], 200, 50)
    assert short.dropped == 0
    assert short.tokens == found.tokenizer.prompt([*system, *talk(1, 2)])
    turns = [*system, *talk(20)]
    prompt = fit(found, turns, 200, 50)
    assert len(prompt.tokens) <= 150
    assert prompt.dropped % 2 == 0
    kept = [*system, *turns[1 + prompt.dropped :]]
    assert prompt.tokens == found.tokenizer.prompt(kept)
    assert kept[1]["role"] == "user"


def test_the_beginning_stays_for_some_turns(found):
    """So that most of it need not be read again."""
    cuts = [fit(found, talk(count, 2), 800, 50).dropped for count in range(4, 60)]
    assert cuts == sorted(cuts)
    assert 1 < len(set(cuts)) < len(cuts) / 4


def test_a_message_that_is_longer_than_the_context(found):
    for turns in (talk(0), talk(3)):
        turns[-1]["content"] = "word " * 1000
        with pytest.raises(ValueError, match=r"message is too long.*tokens.*shorten it"):
            fit(found, turns, 200, 50)
    system = {"role": "system", "content": "word " * 1000}
    with pytest.raises(ValueError, match="message is too long"):
        fit(found, [system, *talk(1)], 200, 50)


def test_contexts(found):
    for context in (0, 15, 257, 10**9):
        with pytest.raises(ValueError, match=r"from 16 to 256 tokens, .* to look back on; got"):
            Reader(found, context)
    assert Reader(found).context == 256


@pytest.mark.parametrize("context", [16, 32, 128, 129])
def test_a_context_shorter_than_what_is_read_together(found, context):
    reader = Reader(found, context)
    assert reader.chunk == context - 1
    prompt = some_tokens(context - 1, found)
    slot = reader.new_slot()
    got = reader.read(slot, prompt)
    np.testing.assert_allclose(got, whole(found, prompt), atol=1e-4)
    got = reader.read(slot, prompt[:1])  # full to the last place
    np.testing.assert_allclose(got, whole(found, [*prompt, prompt[0]]), atol=1e-4)
    made, _ = answer(found, reader, reader.new_slot(), prompt[:5], max_tokens=99)
    assert made.reason in ("stop", "length") and 0 < made.count <= context - 4


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"top_p": 7}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Options(**options).check()


def test_programs_are_made_while_a_conversation_waits(found, reader):
    tokens = some_tokens(30, found)
    slots = [reader.new_slot(), reader.new_slot()]
    for slot in slots:
        reader.read(slot, tokens[:20])
    reader.warm_up()
    for slot in slots:
        got = reader.read(slot, tokens[20:])
        np.testing.assert_allclose(got, whole(found, tokens), atol=1e-4)
