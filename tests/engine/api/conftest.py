"""Sessions on a scripted model, and requests put through them."""

from __future__ import annotations

from pathlib import Path

import pytest

from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.engine.api.asks import Defaults, read_ask
from specx.engine.api.exchange import Exchange
from specx.engine.api.paths import CHAT, COMPLETIONS
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

V = 300  # every text can be tokenized
CUE = "\x01"  # what the prompts of a model that says something fixed end with
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}" + CUE
GREEDY = Defaults(SamplingSettings(seed=1, temperature=0.0), n_predict=300, model="scripted")


def open_session(says=None, *, template=None, tool_template=None, cue=CUE, n_ctx=4096, texts=4, **options):
    """A session on a scripted model; with `says` it writes that text after the cue."""
    clock = SimulatedClock()
    model = ScriptedModel(V, clock=clock, step_costs={1: 10.0, 8: 12.0, 64: 26.0}, n_ctx=n_ctx)
    if says is not None:
        script = [*model.vocab.tokenize((cue + says).encode(), add_special=False, parse_special=False), 0]
        options = {"script": script, "peak": 0.999, "order": len(script) + 1, **options}
        template = template or TEMPLATE
    model = ScriptedModel(
        V, clock=clock, step_costs={1: 10.0, 8: 12.0, 64: 26.0}, n_ctx=n_ctx, max_texts=texts, **options
    )
    asked = Asked(Path("scripted.gguf"), store=False)
    learned = Learned(Store(None), model_key="model", cost_key="cost")
    session = Session(
        model,
        asked,
        learned,
        name="scripted",
        clock=clock,
        chat_template=template,
        tool_template=tool_template,
    )
    session.staircase.load_json({"0": {str(n): 10.0 + n / 4 for n in range(1, 65)}})
    return session


class Api:
    """Puts requests to a session."""

    GREEDY, TEMPLATE, CUE = GREEDY, TEMPLATE, CUE
    open = staticmethod(open_session)

    @staticmethod
    def exchange(session, body, defaults=GREEDY, **options):
        """A request, ready to be written."""
        path = CHAT if "messages" in body else COMPLETIONS
        return Exchange(session, read_ask(body, path, defaults), **options)

    @staticmethod
    def write(session, exchange):
        """All events of an exchange, written to its end."""
        events = []
        for generation, chunk in session.together(exchange.generations):
            assert not exchange.done
            events += exchange.feed(generation, chunk)
        assert exchange.done
        return events

    def ask(self, session, body, defaults=GREEDY, **options):
        """The events and the body of an answer."""
        exchange = self.exchange(session, body, defaults, **options)
        return self.write(session, exchange), exchange.body()

    @staticmethod
    def added_up(events):
        """The choices of a body, put together from the events of a stream as clients do it."""
        choices = {}
        for event in events:
            for choice in event["choices"]:
                whole = choices.setdefault(choice["index"], {"finish_reason": None, "logprobs": None})
                assert whole["finish_reason"] is None
                whole["finish_reason"] = choice["finish_reason"]
                _add_logprobs(whole, choice["logprobs"])
                if "text" in choice:
                    whole["text"] = whole.get("text", "") + choice["text"]
                else:
                    _add_delta(whole.setdefault("message", {}), choice["delta"])
        return [{"index": index, **choice} for index, choice in sorted(choices.items())]


def _add_logprobs(whole, more):
    if more is None:
        return
    for name, value in more.items():
        before = (whole["logprobs"] or {}).get(name)
        added = value if before is None else before + value
        whole["logprobs"] = {**(whole["logprobs"] or {}), name: added}


def _add_delta(message, delta):
    for name in ("role", "content", "reasoning_content"):
        if name in delta:
            message[name] = message.get(name, "") + delta[name]
    for call in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if call["index"] == len(calls):
            assert call["id"] and call["type"] == "function" and call["function"]["name"]
            assert call["function"]["arguments"] == ""
            calls.append({"id": call["id"], "type": "function", "function": dict(call["function"])})
        else:
            assert call["index"] == len(calls) - 1 and "name" not in call["function"] and "id" not in call
            calls[-1]["function"]["arguments"] += call["function"]["arguments"]


@pytest.fixture(scope="session")
def api():
    """How the tests here talk to a session."""
    return Api()


@pytest.fixture(scope="session")
def real(smollm2):
    """A session on a real model."""
    with Session.open(Asked(smollm2, n_ctx=1024, texts=4, store=False, measure=False)) as session:
        yield session


@pytest.fixture(scope="session")
def plain(api):
    """A session on a scripted model that says anything."""
    return api.open(texts=2)
