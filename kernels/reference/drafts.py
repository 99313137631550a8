"""What the native drafting classes compute, in plain Python by brute force over the text.

Everything is defined on strings and their occurrences, so nothing here shares a data structure with the
native code. Chains of suffixes are followed without the native limits on hops.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specx.kernels._native import RECYCLE_SHAPE, SUFFIX_SHAPE

__all__ = [
    "CorpusReference",
    "FreeTrieReference",
    "RecycleTableReference",
    "SuffixTexts",
    "graft",
    "merge_chain",
    "token_after",
]

SEPARATOR = -1
ROW_WIDTH = 8
MAX_SUFFIXES = 3
MIN_PROBABILITY = 0.002
PRIOR_TRIALS = 8.0
KEEP = 0.99
NEW, MAX_STREAK = -1, 3
GREEDY, PLAIN, COUPLED = 0, 1, 2
SUFFIX, RECYCLE, HISTORY, CORPUS = 0, 1, 2, 3
LENGTH_EDGES = (2, 3, 4, 5, 7, 11, 21)
MARGIN_EDGES = (0.25, 0.75, 1.5, 3.0, 5.0)
CLEAR_MARGIN = 1.0
TEXT_EVIDENCE = 7
SHARE_EDGES = (0.3, 0.6, 0.9, 1.0)
SAMPLES, CONTINUATIONS = 16, 2

String = tuple[int, ...]
Node = tuple[int, int, float, int]
"""Token, parent, path probability and source of a node of a draft."""
Noise = Callable[[int, int, int], float]
"""Gumbel noise of (seed, position, token)."""


class SuffixTexts:
    """Texts that grow, and questions about where their strings occur; with `apart`, in other texts only."""

    def __init__(self, *, apart: bool = False) -> None:
        self.apart = apart
        self.places: list[tuple[int, int]] = []  # token and text, as they came
        self.of: dict[int, list[int]] = {}  # the places of each text

    def begin(self) -> int:
        """A new text."""
        self.of[len(self.of)] = []
        return len(self.of) - 1

    def append(self, text: int, tokens: Iterable[int]) -> None:
        """Add tokens at the end of a text."""
        for token in tokens:
            self.of[text].append(len(self.places))
            self.places.append((int(token), text))

    def tokens(self, text: int) -> String:
        """All of a text."""
        return tuple(self.places[place][0] for place in self.of[text])

    def ends(self, string: String) -> list[tuple[int, int]]:
        """Where `string` occurs: the text, and the number in it of the token after it."""
        n, found = len(string), []
        for text in self.of:
            tokens = self.tokens(text)
            found += [(text, i) for i in range(n, len(tokens) + 1) if tokens[i - n : i] == string]
        return found

    def followed(self, string: String, told: int | None = None) -> list[tuple[int, int, int]]:
        """Text, last place and next place of those occurrences that a token follows, as these tokens came; of
        those that the text `told` is told of, if one is given."""
        found = [
            (text, self.of[text][i - 1], self.of[text][i])
            for text, i in self.ends(string)
            if i < len(self.of[text]) and not (self.apart and text == told)
        ]
        return sorted(found, key=lambda each: each[2])

    def streak(self, string: String) -> int:
        """How many of the last occurrences, at most 3, were followed by what their text was told."""
        streak, before = NEW, self.followed(string)
        for n, (text, _, place) in enumerate(before):
            told = [next_ for of, _, next_ in before[:n] if not (self.apart and of == text)]
            if told:
                right = self.places[told[-1]][0] == self.places[place][0]
                streak = min(max(streak, 0) + 1, MAX_STREAK) if right else 0
        return streak

    def common(self, string: String) -> tuple[int, int, int]:
        """The token that followed `string` most often, the latest of several, its count, and that of all."""
        tokens = [self.places[place][0] for _, _, place in self.followed(string)]
        best = max(tokens, key=lambda token: (tokens.count(token), len(tokens) - tokens[::-1].index(token)))
        return best, tokens.count(best), len(tokens)

    def longest(self, text: int, path: Sequence[int] = ()) -> String:
        """Longest suffix of a text that it is told of; of that and `path`, the longest suffix that occurs."""
        whole = self.tokens(text)
        while whole and not self.followed(whole, text):
            whole = whole[1:]
        whole += tuple(path)
        while whole and not self.ends(whole):
            whole = whole[1:]
        return whole

    def chain(self, string: String) -> list[String]:
        """`string`, then each longest shorter suffix of it that occurs in more places."""
        strings = []
        while string:
            strings.append(string)
            ends = self.ends(string)
            while string and self.ends(string) == ends:
                string = string[1:]
        return strings

    def match(self, text: int, count: int) -> tuple[list[int], list[int]]:
        """Ends and lengths of the most recent occurrences of suffixes of a text."""
        found: list[tuple[int, int, int]] = []  # end, length, next token
        for string in self.chain(self.longest(text)):
            followed = self.followed(string, text)
            if not followed or len(found) == count:
                continue
            token = self.places[followed[-1][2]][0]
            if token not in [each[2] for each in found]:
                found.append((followed[-1][1], len(string), token))
        return [end for end, _, _ in found], [length for _, length, _ in found]


class CorpusReference:
    """Texts that do not change, -1 between them."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = [int(token) for token in tokens]

    def occurrences(self, string: String) -> list[int]:
        """Where the token after each occurrence of `string` would be, sorted by what follows."""
        n = len(string)
        ends = [i for i in range(n, len(self.tokens) + 1) if tuple(self.tokens[i - n : i]) == string]
        return sorted(ends, key=lambda i: self.tokens[i:])

    def longest(self, text: Sequence[int]) -> String:
        """The longest suffix of `text` that occurs."""
        for start in range(len(text)):
            string = tuple(text[start:])
            if SEPARATOR not in string and self.occurrences(string):
                return string
        return ()

    def continuations(self, string: String) -> list[tuple[int, float]]:
        """The most frequent tokens after `string` and their shares of the occurrences that are looked at."""
        places = self.occurrences(string)
        n = len(places)
        if n > SAMPLES:
            places = [places[(2 * i + 1) * n // (2 * SAMPLES)] for i in range(SAMPLES)]
        tokens = [self.tokens[i] if i < len(self.tokens) else SEPARATOR for i in places]
        found = sorted({t for t in tokens if t != SEPARATOR}, key=lambda t: (-tokens.count(t), t))
        return [(t, float(np.float32(tokens.count(t) / len(tokens)))) for t in found[:CONTINUATIONS]]


class RecycleTableReference:
    """The last best tokens after a token and after a pair of tokens, in dictionaries."""

    def __init__(self, k: int = ROW_WIDTH) -> None:
        self.k = k
        self.rows: dict[tuple[int, ...], tuple[list[int], list[float]]] = {}

    def update(self, previous: int, token: int, logits: NDArray[np.float32]) -> None:
        """Keep the best k of logits (V,), by decreasing logit, ties to the lower id."""
        ids = [int(i) for i in np.lexsort((np.arange(len(logits)), -logits)) if np.isfinite(logits[i])]
        row = ids[: self.k], [float(logits[i]) for i in ids[: self.k]]
        self.rows[(token,)] = row
        if previous >= 0:
            self.rows[previous, token] = row

    def lookup(self, previous: int, token: int) -> tuple[list[int], list[float], int]:
        """Ids, logits and order (0 if there is none) of the row of (previous, token), else of token."""
        for key in ((previous, token), (token,)):
            if key in self.rows:
                return *self.rows[key], len(key)
        return [], [], 0


def bucket(value: float, edges: Sequence[float]) -> int:
    """How many of the increasing edges `value` has reached."""
    return sum(value >= edge for edge in edges)


def agreement(token: int, ids: Sequence[int], scores: Sequence[float], row_order: int) -> int:
    """What the recycled row says of a suffix candidate, as a bucket."""
    if row_order == 0:
        return 5
    if token not in ids:
        return 4
    if ids.index(token) > 0:
        return 2 if ids.index(token) <= 2 else 3
    return 0 if len(ids) > 1 and scores[0] - scores[1] >= CLEAR_MARGIN else 1


def corpus_evidence(share: float, occurrences: int) -> int:
    """What the corpus says of a candidate, as a bucket."""
    edges = [float(np.float32(edge)) for edge in SHARE_EDGES]
    return 2 * TEXT_EVIDENCE + (0 if occurrences == 1 else 1 + bucket(share, edges))


def suffix_cell(order: int, place: int, length: int, agrees: int, evidence: int) -> int:
    """Index of the cell of a suffix candidate."""
    where = (order, place, bucket(length, LENGTH_EDGES), agrees, evidence)
    return int(np.ravel_multi_index(where, SUFFIX_SHAPE))


def recycle_cell(order: int, place: int, margin: float, row_order: int, match: int) -> int:
    """Index of the cell of a recycled candidate; `match` is the length of the first suffix match or 0."""
    where = (
        order,
        place,
        bucket(float(np.float32(margin)), MARGIN_EDGES),
        row_order - 1,
        bucket(match, (1, 2, 5)),
    )
    return math.prod(SUFFIX_SHAPE) + int(np.ravel_multi_index(where, RECYCLE_SHAPE))


@dataclass
class FreeTrieReference:
    """The merged trie, grown from scratch at every call."""

    counts: NDArray[np.float32]
    prior: NDArray[np.float32]
    noise: Noise
    use_suffix: bool = True
    use_recycle: bool = True
    corpus: CorpusReference | None = None
    written: SuffixTexts | None = None
    table: RecycleTableReference = field(default_factory=RecycleTableReference)
    text: list[int] = field(default_factory=list)
    own: SuffixTexts = field(default_factory=SuffixTexts)
    in_written: int = -1

    def begin(self, context: Sequence[int], shared: int = 0) -> None:
        """Go on to `context`, or start another text, of which others search the last `shared` tokens."""
        if not self.text or list(context[: len(self.text)]) != self.text:
            self.text, self.own, self.in_written = [], SuffixTexts(), -1
            self.own.begin()
        for i in range(len(self.text), len(context)):
            if self.written is not None and self.in_written < 0 and i >= len(context) - shared:
                self.in_written = self.written.begin()
            self.append(context[i])
        if self.written is not None and self.in_written < 0:
            self.in_written = self.written.begin()

    def append(self, token: int) -> None:
        """Add a token to the text, and to what the others are searched in."""
        self.text.append(token)
        self.own.append(0, [token])
        if self.written is not None and self.in_written >= 0:
            self.written.append(self.in_written, [token])

    def ranked_row(
        self, path: Sequence[int], order: int, seed: int, position: int, temperature: float
    ) -> tuple[list[int], list[float], int]:
        """Ids, scores and order of the recycled row after text + path, best first."""
        if not self.use_recycle:
            return [], [], 0
        ends = [-1, -1, *self.text[-2:], *path][-2:]
        ids, logits, row_order = self.table.lookup(*ends)
        scores = [logit * (1 / temperature if temperature > 0 else 1.0) for logit in logits]
        if order == COUPLED:
            scores = [s + self.noise(seed, position, i) for s, i in zip(scores, ids, strict=True)]
            ranking = sorted(range(len(ids)), key=lambda i: -scores[i])
            ids, scores = [ids[i] for i in ranking], [scores[i] for i in ranking]
        return ids, scores, row_order

    def candidates(
        self, path: Sequence[int], order: int, seed: int, position: int, temperature: float
    ) -> list[tuple[int, int, int]]:
        """(token, cell, source) of every candidate after text + path, in the order they are tried."""
        ids, scores, row_order = self.ranked_row(path, order, seed, position, temperature)
        found: list[tuple[int, int, int]] = []
        match = 0
        for token, length, evidence, source in self.followers(path) if self.use_suffix else []:
            if len(found) < MAX_SUFFIXES and token not in [t for t, _, _ in found]:
                agrees = agreement(token, ids, scores, row_order)
                found.append((token, suffix_cell(order, len(found), length, agrees, evidence), source))
                match = match or length
        left = [(i, s) for i, s in zip(ids, scores, strict=True) if i not in [t for t, _, _ in found]]
        for k, (token, score) in enumerate(left):
            margin = score - left[k + 1][1] if k + 1 < len(left) else 0.0
            found.append((token, recycle_cell(order, k, margin, row_order, match), RECYCLE))
        return found

    def followers(self, path: Sequence[int]) -> list[tuple[int, int, int, int]]:
        """(token, match length, evidence, source) of what followed suffixes of text + path, longest first."""
        found = self.told(self.own, 0, path, SUFFIX)
        if self.written is not None:
            found += self.told(self.written, self.in_written, path, HISTORY)
        string = self.corpus.longest((*self.text, *path)) if self.corpus else ()
        if self.corpus and string:
            occurrences = len(self.corpus.occurrences(string))
            for token, share in self.corpus.continuations(string):
                found.append((token, len(string), corpus_evidence(share, occurrences), CORPUS))
        return sorted(found, key=lambda each: -each[1])

    def told(
        self, texts: SuffixTexts, text: int, path: Sequence[int], source: int
    ) -> list[tuple[int, int, int, int]]:
        """The same of one source, which tells what came last, then what came most often."""
        found, first = [], TEXT_EVIDENCE * (source == HISTORY)
        for string in texts.chain(texts.longest(text, path)):
            followed = texts.followed(string, text)
            if followed:
                recent = texts.places[followed[-1][2]][0]
                found.append((recent, len(string), first + texts.streak(string) + 1, source))
                common, count, all_of_them = texts.common(string)
                often = 5 if 2 * count < all_of_them else 6
                found.append((common, len(string), first + often, source))
        return found

    def hazard(self, cell: int) -> float:
        """P(a candidate of this cell is right | those before it are not)."""
        hits, trials = map(float, self.counts[cell])
        return (PRIOR_TRIALS * float(self.prior[cell]) + hits) / (PRIOR_TRIALS + trials)

    def observe(
        self, tokens: Sequence[int], seed: int = 0, position: int = 0, temperature: float = 0.0
    ) -> None:
        """Score the candidates of each context against the token that came, then append it."""
        for i, token in enumerate(tokens):
            for order in (PLAIN, COUPLED) if temperature > 0 else (GREEDY,):
                for guess, cell, _ in self.candidates((), order, seed, position + i, temperature):
                    hits, trials = map(float, self.counts[cell])
                    self.counts[cell] = KEEP * hits + (guess == token), KEEP * trials + 1
                    if guess == token:
                        break
            self.append(token)

    def grow(
        self,
        limit: int,
        leaves: int,
        seed: int = 0,
        position: int = 0,
        temperature: float = 0.0,
        coupled: bool = False,
        path: Sequence[int] = (),
    ) -> list[Node]:
        """(token, parent, path probability, source) of the nodes of the best tree below text + path."""
        order = GREEDY if temperature <= 0 else COUPLED if coupled else PLAIN
        nodes: list[Node] = []
        paths: list[String] = [tuple(path)]
        heap: list[tuple[float, int, int, int, int]] = []
        pushes = 0
        while True:
            at, rest = paths[-1], nodes[-1][2] if nodes else 1.0
            for token, cell, source in self.candidates(at, order, seed, position + len(at), temperature):
                if rest < MIN_PROBABILITY:
                    break
                prob = rest * self.hazard(cell)
                rest -= prob
                if prob >= MIN_PROBABILITY:
                    heapq.heappush(heap, (-prob, pushes, len(nodes) - 1, token, source))
                    pushes += 1
            while heap:
                prob, _, parent, token, source = heapq.heappop(heap)
                inner = {p for _, p, _, _ in nodes}
                if (parent >= 0 and parent not in inner) or len(nodes) - len(inner - {-1}) < leaves:
                    break
            else:
                return nodes
            if len(nodes) == limit:
                return nodes
            nodes.append((token, parent, -prob, source))
            paths.append((*paths[parent + 1], token))


def merge_chain(
    draft: Sequence[Node], tokens: Sequence[int], hazards: Sequence[float], source: int
) -> list[Node]:
    """The tree of a draft and of a chain from below its root, best first, by the paths of both.

    At each node of the chain its token has the given hazard, and the other children share what is left in the
    proportions that they had.
    """
    paths: list[String] = []
    for token, parent, _, _ in draft:
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    before = {path: node[2] for path, node in zip(paths, draft, strict=True)} | {(): 1.0}
    sources = {path: node[3] for path, node in zip(paths, draft, strict=True)}
    own = len(paths)
    chain = tuple(tokens)
    now: dict[String, float] = {(): 1.0}
    for depth, hazard in enumerate(hazards):
        path = chain[: depth + 1]
        now[path] = now[path[:-1]] * hazard
        if path not in sources:
            paths.append(path)
            sources[path] = source
    for path in paths[:own]:
        if path in now:
            continue
        above = path[:-1]
        share = before[path] / max(before[above], 1e-9)  # of what was right below the node above
        if above == chain[: len(above)] and len(above) < len(chain):  # the chain says something else here
            same = before.get(chain[: len(above) + 1], 0.0) / max(before[above], 1e-9)
            share *= (1 - hazards[len(above)]) / max(1 - same, 1e-6)
        now[path] = now[above] * share
    for path in paths:
        now[path] = min(now[path], now[path[:-1]])
    order = sorted(paths, key=lambda path: -now[path])
    place = {path: i for i, path in enumerate(order)} | {(): -1}
    return [(path[-1], place[path[:-1]], now[path], sources[path]) for path in order]


def graft(draft: Sequence[Node], path: Sequence[int], below: Sequence[Node]) -> list[Node]:
    """`draft` with the tree `below` under the node that `path` leads to, which has no children."""
    paths: list[String] = []
    for token, parent, _, _ in draft:
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    at = paths.index(tuple(path)) if path else -1
    above = draft[at][2] if path else 1.0
    own = len(draft)
    nodes = list(draft)
    for token, parent, prob, source in below:
        nodes.append((token, parent + own if parent >= 0 else at, prob * above, source))
    order = sorted(range(len(nodes)), key=lambda i: -nodes[i][2])
    place = {i: n for n, i in enumerate(order)} | {-1: -1}
    return [(nodes[i][0], place[nodes[i][1]], *nodes[i][2:]) for i in order]


def token_after(draft: Sequence[Node], path: Sequence[int]) -> int:
    """The token of the first child of the node that the tokens `path` lead to, -1 if there is none."""
    at = -1
    for token in path:
        found = [i for i, node in enumerate(draft) if node[1] == at and node[0] == token]
        if not found:
            return -1
        at = found[0]
    return next((token for token, parent, _, _ in draft if parent == at), -1)
