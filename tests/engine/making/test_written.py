"""What a model writes to be learned from is the same however often it is interrupted."""

import pytest

from specx.engine.making.written import BEHIND, PHRASE, REPEATED, WrittenTexts, before_loop, write_texts
from specx.engine.session import Session
from specx.engine.settings import Asked

CHAT = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}<s>model:"


@pytest.fixture(scope="module")
def session(write_tiny, tmp_path_factory):
    path = write_tiny(
        tmp_path_factory.mktemp("written") / "tiny.gguf", "llama", extra=lambda w: w.add_chat_template(CHAT)
    )
    asked = Asked(
        path, n_ctx=512, texts=8, threads=1, threads_batch=1, drafter="none", store=False, measure=False
    )
    with Session.open(asked) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("specx.engine.making.written.QUESTION", 12)
    monkeypatch.setattr("specx.engine.making.written.ANSWER", 12)
    monkeypatch.setattr("specx.engine.making.written.BEHIND", 12)


def written(session, path, tokens, seed=3):
    texts = WrittenTexts(path)
    write_texts(session, texts, seed, lambda chosen: chosen >= tokens)
    return texts.texts


def test_the_same_whether_interrupted_or_not(session, tmp_path):
    whole = written(session, tmp_path / "whole", 1500)
    for tokens in (300, 301, 900, 1500):
        parts = written(session, tmp_path / "parts", tokens)
    assert len(whole) > 90
    assert whole == parts
    assert written(session, tmp_path / "other", 1500, seed=4)[80:] != whole[80:]


def test_questions_and_answers(session, tmp_path):
    texts = written(session, tmp_path / "texts", 2500)
    questions = [text for text in texts if text.question]
    assert 0 < len(questions) < len(texts) / 2
    assert len({text.tokens for text in texts}) > len(texts) / 2
    assert all(0 < text.start < len(text.tokens) for text in texts if text.text)
    opening = questions[0].tokens[: questions[0].start]
    assert all(text.tokens[: text.start] == opening for text in questions)
    assert session.tokenize("<s>user: ", add_special=True, parse_special=True)[:2] == list(opening[:2])


@pytest.mark.parametrize(
    "tail", [b'{"tokens": [1, 2], "start"', b"\x00\xff\n", b'{"tokens": ["a"], "start": 1}\n']
)
def test_a_torn_line_is_cut_off(session, tmp_path, tail):
    path = tmp_path / "texts"
    texts = written(session, path, 200)
    data = path.read_bytes()
    path.write_bytes(data + tail)
    again = WrittenTexts(path)
    assert again.texts == texts
    assert again.dropped == len(tail)
    assert path.read_bytes() == data


def test_no_more_are_written_at_once_than_may_depend_on_each_other(session):
    assert session.at_once < BEHIND


def test_where_a_text_goes_in_circles():
    plain = list(range(100))
    assert before_loop(plain) == 100
    assert before_loop([]) == 0
    for period in (1, 5, 24, 60):
        text = plain + list(range(200, 200 + period)) * 60
        # the phrase once, then as many tokens as make a repetition, and those that tell
        assert before_loop(text) == 100 + period + PHRASE - 1 + REPEATED
    items = [token for item in range(40) for token in (1, 2, 3, 4, 5, 100 + item)]
    assert before_loop(items) == len(items)  # a list whose items differ
    quoted = list(range(30))
    assert before_loop([*plain, *quoted, *plain]) < 230
    assert before_loop([*plain, *quoted[:REPEATED]]) == 124  # a short quotation is none


def test_texts_end_where_they_go_in_circles(session, tmp_path, monkeypatch):
    monkeypatch.setattr("specx.engine.making.written.ANSWER", 160)
    texts = written(session, tmp_path / "whole", 2500)
    answers = [text.tokens[text.start :] for text in texts if not text.question]
    assert all(before_loop(answer) == len(answer) for answer in answers)
    cut = [answer for answer in answers if before_loop(answer[:-1]) == len(answer) - 1 and len(answer) < 160]
    assert len(cut) > 5
    for tokens in (700, 2500):
        parts = written(session, tmp_path / "parts", tokens)
    assert parts == texts
