"""Counts of a server in the text format of Prometheus, by the names that llama.cpp's server has for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specx.engine.service import Counts, Service

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Metric:
    """One metric and its samples.

    Attributes:
        name: without what is added for a sample.
        kind: "counter", "gauge" or "histogram".
        help: one line.
        samples: (suffix, labels, value).
    """

    name: str
    kind: str
    help: str
    samples: tuple[tuple[str, Labels, float], ...]

    def lines(self) -> Iterator[str]:
        """As they are scraped."""
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} {self.kind}"
        for suffix, labels, value in self.samples:
            shown = ",".join(f'{key}="{text}"' for key, text in labels.items())
            yield f"{self.name}{suffix}{'{' + shown + '}' if shown else ''} {value!r}"


def _one(name: str, kind: str, text: str, value: float) -> _Metric:
    return _Metric(name, kind, text, (("", {}, value),))


def exposition(service: Service) -> str:
    """All of them."""
    metrics = [*_of_llama_cpp(service), *_of_specx(service.counts)]
    return "".join(f"{line}\n" for metric in metrics for line in metric.lines())


def _of_llama_cpp(service: Service) -> Iterator[_Metric]:
    counts = service.counts
    for name, text, value in (
        ("prompt_tokens_total", "Prompt tokens read, those in the cache excluded", counts.prompt_tokens),
        ("prompt_tokens_cached_total", "Prompt tokens reused from the cache", counts.cached_tokens),
        ("prompt_seconds_total", "Seconds spent reading prompts", counts.prompt_s),
        ("tokens_predicted_total", "Tokens written", counts.predicted_tokens),
        ("tokens_predicted_seconds_total", "Seconds spent writing, summed over texts", counts.predicted_s),
        ("n_decode_total", "Steps of the decode loop", round(counts.steps)),
        ("n_tokens_max", "Most tokens of a prompt and its answer", counts.longest),
        ("spec_decode_num_draft_tokens_total", "Drafted tokens that were verified", counts.drafted),
        ("spec_decode_num_accepted_tokens_total", "Drafted tokens that were right", counts.accepted),
        ("spec_decode_num_drafts_total", "Steps of a text that verified a draft", counts.drafts),
    ):
        yield _one(f"llamacpp:{name}", "counter", text, value)
    for name, text, value in (
        (
            "prompt_tokens_seconds",
            "Prompt tokens per second, on average",
            _rate(counts.prompt_tokens, counts.prompt_s),
        ),
        (
            "predicted_tokens_seconds",
            "Tokens written per second of a text, on average",
            _rate(counts.predicted_tokens, counts.predicted_s),
        ),
        ("requests_processing", "Texts that are read or written", service.writing),
        ("requests_deferred", "Texts that wait for room", service.waiting),
        ("n_busy_slots_per_decode", "Texts in a step, on average", _rate(counts.text_steps, counts.steps)),
    ):
        yield _one(f"llamacpp:{name}", "gauge", text, value)
    if at := list(counts.accepted_at):
        yield _Metric(
            "llamacpp:spec_decode_num_accepted_tokens_per_pos_total",
            "counter",
            "Accepted tokens by position in the draft",
            tuple(("", {"position": str(position)}, count) for position, count in enumerate(at)),
        )


def _of_specx(counts: Counts) -> Iterator[_Metric]:
    from specx.engine.service import FIRST_TOKEN_S

    yield _Metric(
        "specx:texts_total",
        "counter",
        "Texts that ended, by reason",
        tuple(("", {"finish_reason": reason}, count) for reason, count in sorted(counts.endings.items())),
    )
    yield _one(
        "specx:requests_refused_total", "counter", "Requests that found no room to wait", counts.refused
    )
    classes, total = [], 0
    for end, count in zip((*map(str, FIRST_TOKEN_S), "+Inf"), list(counts.first_token), strict=True):
        total += count
        classes.append(("_bucket", {"le": end}, float(total)))
    yield _Metric(
        "specx:time_to_first_token_seconds",
        "histogram",
        "Seconds from a request to the first token of its text",
        (*classes, ("_sum", {}, counts.first_token_s), ("_count", {}, float(total))),
    )


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
