"""One answer of a response: what its chunks add to a stream, and what they come to."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from specx.backends.base import Vocab
from specx.backends.errors import SpecxError
from specx.engine.api.asks import Ask
from specx.engine.api.logprobs import Entry, TokenLog, chat_form, completion_form, prompt_entries
from specx.engine.api.parsing import Call, Parser, Part
from specx.engine.session import Chunk, Generation

__all__ = ["ChatChoice", "Choice", "CompletionChoice", "cancelled"]

REASONS = {"stop": "stop", "length": "length", "context": "length"}


def cancelled() -> SpecxError:
    """Why an answer that was ended from outside is none."""
    return SpecxError("the answer was cancelled")


class Choice(ABC):
    """One answer.

    Args:
        index: its number in the response.
        generation: what is written.
        ask: the request.
        vocab: of the model.
        before: characters that stand before its text.

    Attributes:
        failure: why there is none, once it has ended without.
    """

    def __init__(self, index: int, generation: Generation, ask: Ask, vocab: Vocab, before: int = 0) -> None:
        self.index, self.generation, self.ask, self.vocab = index, generation, ask, vocab
        self.failure: SpecxError | None = None
        self._log = None if ask.logprobs is None else TokenLog(vocab, generation.request.shown, before)
        self._length = before  # characters of the text so far
        self._entries: list[Entry] = []  # all that were given away
        self._untold = 0  # of them, those that no event has told yet
        self._reason: str | None = None

    def feed(self, chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
        """What chunks add to a stream: `choices` of an event each."""
        result, last = self.generation.result, chunks[-1].last
        if last:
            self.failure = result.failure or (None if result.finish_reason in REASONS else cancelled())
            if self.failure is not None:
                return []
        text = "".join(chunk.text for chunk in chunks)
        self._length += len(text)
        self._take_log(chunks)
        events = [self._event(delta) for delta in self._deltas(text, last=last)]
        if last:
            self._reason = self._finish_reason(REASONS[result.finish_reason])
            events.append(self._event(self._nothing(), self._reason))
        return events

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """The whole answer, once it has ended."""

    @abstractmethod
    def _deltas(self, text: str, *, last: bool) -> list[dict[str, Any]]:
        """What more of the text adds, in the form of the API."""

    @abstractmethod
    def _nothing(self) -> dict[str, Any]:
        """That nothing is added."""

    @abstractmethod
    def _logprobs(self, entries: list[Entry]) -> dict[str, Any]:
        """Probabilities in the form of the API."""

    def _finish_reason(self, reason: str) -> str:
        return reason

    def _take_log(self, chunks: Sequence[Chunk]) -> None:
        if self._log is None:
            return
        for chunk in chunks:
            if chunk.step is not None:
                self._log.add(chunk.tokens, chunk.step.evidence[: len(chunk.tokens)])
        self._entries += self._log.take(self._length, last=chunks[-1].last)

    def _event(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        new = [] if "role" in delta.get("delta", ()) else self._entries[self._untold :]
        self._untold += len(new)
        told = new or (reason is not None and self._log is not None)
        logprobs = self._logprobs(new) if told else None
        return {"index": self.index, **delta, "logprobs": logprobs, "finish_reason": reason}

    def _whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        logprobs = None if self._log is None else self._logprobs(self._entries)
        return {"index": self.index, **answer, "logprobs": logprobs, "finish_reason": self._reason}


class CompletionChoice(Choice):
    """A prompt continued.

    Args:
        index, generation, ask, vocab: as of every choice.
        prompt: the text that an echo begins with.
        added: how many tokens before the prompt were added by the model's tokenizer.
    """

    def __init__(
        self, index: int, generation: Generation, ask: Ask, vocab: Vocab, prompt: str, added: int
    ) -> None:
        self._echo = prompt if ask.echo else None
        super().__init__(index, generation, ask, vocab, len(self._echo or ""))
        self._added = added
        self._text = ""

    def body(self) -> dict[str, Any]:
        """The choice of a `text_completion`."""
        return self._whole({"text": self._text})

    def _take_log(self, chunks: Sequence[Chunk]) -> None:
        if self._echo is not None and self._log is not None:
            request, scored = self.generation.request, self.generation.result.prompt_evidence
            self._entries += prompt_entries(self.vocab, request.prompt, scored, self._added, len(self._echo))
        super()._take_log(chunks)

    def _deltas(self, text: str, *, last: bool) -> list[dict[str, Any]]:
        del last
        echo, self._echo = self._echo or "", None
        texts = [each for each in (echo, text) if each]
        self._text += "".join(texts)
        return [{"text": each} for each in texts]

    def _nothing(self) -> dict[str, Any]:
        return {"text": ""}

    def _logprobs(self, entries: list[Entry]) -> dict[str, Any]:
        return completion_form(entries, self.vocab, self.ask.logprobs or 0)


class ChatChoice(Choice):
    """An answer of a chat.

    Args:
        index, generation, ask, vocab: as of every choice.
        parser: takes the answer apart.
        id: of the response, which ids of calls are made from.
    """

    def __init__(
        self, index: int, generation: Generation, ask: Ask, vocab: Vocab, parser: Parser, id: str
    ) -> None:
        super().__init__(index, generation, ask, vocab)
        self._parser, self._id = parser, id
        self._begun = False
        self._texts = {"content": "", "reasoning": ""}
        self._calls: list[dict[str, Any]] = []

    def body(self) -> dict[str, Any]:
        """The choice of a `chat.completion`."""
        message: dict[str, Any] = {"role": "assistant", "content": self._texts["content"]}
        if self._texts["reasoning"]:
            message["reasoning_content"] = self._texts["reasoning"]
        if self._calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = self._calls
        return self._whole({"message": message})

    def _deltas(self, text: str, *, last: bool) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [] if self._begun else [{"role": "assistant", "content": ""}]
        self._begun = True
        parts = self._parser.feed(text)
        if last:
            parts += self._parser.finish(full=REASONS[self.generation.result.finish_reason] == "length")
        for part in parts:
            deltas += self._part(part)
        return [{"delta": delta} for delta in deltas]

    def _part(self, part: Part) -> list[dict[str, Any]]:
        if part.call is not None:
            return self._call(part.call)
        if part.kind == "arguments":
            return [self._more(part.text)]
        self._texts[part.kind] += part.text
        return [{"content" if part.kind == "content" else "reasoning_content": part.text}]

    def _call(self, call: Call) -> list[dict[str, Any]]:
        """A call as clients put it together: its name once, then its arguments."""
        number = len(self._calls)
        label = call.id or _call_id(self._id, self.index, number)
        head = {"id": label, "type": "function"}
        first = {"index": number, **head, "function": {"name": call.name, "arguments": ""}}
        self._calls.append({**head, "function": {"name": call.name, "arguments": ""}})
        return [{"tool_calls": [first]}, *([self._more(call.arguments)] if call.arguments else [])]

    def _more(self, arguments: str) -> dict[str, Any]:
        """More of the arguments of the last call."""
        self._calls[-1]["function"]["arguments"] += arguments
        return {"tool_calls": [{"index": len(self._calls) - 1, "function": {"arguments": arguments}}]}

    def _nothing(self) -> dict[str, Any]:
        return {"delta": {}}

    def _logprobs(self, entries: list[Entry]) -> dict[str, Any]:
        return chat_form(entries, self.vocab, self.ask.logprobs or 0)

    def _finish_reason(self, reason: str) -> str:
        whole = self._calls and not self._parser.cut  # a stop string may end it within a call
        return "tool_calls" if whole and reason == "stop" else reason


def _call_id(response: str, index: int, number: int) -> str:
    """The same for the same response: a batch that is resumed writes the same ids. Nine letters and digits,
    which is what Mistral's templates accept."""
    key = f"{response} {index} {number}".encode()
    return hashlib.blake2b(key, digest_size=16).hexdigest()[:9]
