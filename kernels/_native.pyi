"""What the native module exports. The NumPy references beside it say in full what each function does."""

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

def gumbel(seed: int, position: int, ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """Gumbel noise (m,) float64 of the token ids (m,) int32: a function of (seed, position, id) only."""

def rank_tokens(
    logits: NDArray[np.float32],
    seed: int,
    position: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical_p: float,
    count: int,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The best `count` kept tokens, (m,) int32 ids and (m,) float64 scores, by decreasing score.

    Raises:
        ValueError: no logit is above -inf, or count is below 1.
    """

class LogitRows:
    """The logits (n, V) of one call, borrowed; what is found out about a row is kept."""

    def __init__(self, logits: NDArray[np.float32]) -> None: ...
    def argmax(self, row: int) -> int:
        """The token of the largest logit, ties to the lower id; -1 if there is none above -inf."""

    def rank(
        self,
        row: int,
        seed: int,
        position: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        count: int,
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """`rank_tokens` of a row."""

SUFFIX_SHAPE: tuple[int, ...]
RECYCLE_SHAPE: tuple[int, ...]

class SuffixAutomaton:
    """Online suffix automaton over texts of tokens, all of which may grow.

    With `apart` a text is told of occurrences in other texts only.
    """

    def __init__(self, apart: bool = False) -> None: ...
    def begin(self) -> int:
        """A new text; returns its number, which is never given again."""

    def append(self, text: int, tokens: NDArray[np.int32]) -> None:
        """Add tokens (n,) at the end of a text.

        Raises:
            ValueError: one is negative, or there is no such text, or it has ended.
        """

    def end(self, text: int) -> None:
        """Nothing is added to a text any more; its tokens stay."""

    def match(self, text: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ends (places in `tokens`) and lengths, (m,) each with m <= count, of the most recent occurrences of
        suffixes of a text that a token followed, longest first, with pairwise different next tokens."""

    def tokens(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The tokens of all texts as they came, (n,), and the number of the text of each, (n,)."""

    def reserve(self, more: int) -> None:
        """Memory for so many tokens more, at once."""

    def forget(self, keep: int) -> None:
        """Forget all but the latest `keep` tokens; texts go on with what is left of them."""

    def clear(self) -> None:
        """Forget everything; no text goes on."""

    def __len__(self) -> int: ...

def suffix_array(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Where the suffixes of tokens (n,), -1 between texts, begin in increasing order, (n,).

    Raises:
        ValueError: a token is less than -1, or n is 2^30 or more.
    """

class Corpus:
    """Tokens (n,) int32 that do not change, -1 between texts, and their suffix array (n,); neither is copied.

    An index that is wrong gives wrong matches, and nothing worse.

    Raises:
        ValueError: the arrays differ in length, or n is 2^30 or more.
    """

    def __init__(self, tokens: NDArray[np.int32], suffixes: NDArray[np.int32]) -> None: ...
    def match(self, text: Sequence[int]) -> tuple[int, int, list[tuple[int, float]]]:
        """Length and number of occurrences of the longest suffix of `text` that occurs, and what follows most
        often: at most two tokens with their shares of the occurrences, of which at most 16 are looked at."""

    def __len__(self) -> int: ...

class RecycleTable:
    """The target's last best k tokens after each token and after each pair of tokens."""

    def __init__(self, vocab_size: int, k: int = 8, contexts: int = 65536) -> None: ...
    def update(
        self, previous: NDArray[np.int32], tokens: NDArray[np.int32], logits: NDArray[np.float32]
    ) -> None:
        """Logits (n, V) followed `tokens` (n,), which came after `previous` (n,) or -1; the last row wins."""

    def update_top(
        self,
        previous: NDArray[np.int32],
        tokens: NDArray[np.int32],
        ids: NDArray[np.int32],
        logits: NDArray[np.float32],
    ) -> None:
        """The same with the best tokens known: ids and logits (n, m), best first, -1 where a row ends."""

    def lookup(self, previous: int, token: int) -> tuple[NDArray[np.int32], NDArray[np.float32], int]:
        """Ids, logits and order (2 pair, 1 token, 0 nothing known) of what may follow."""

    def export(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        """Tokens (n,), ids (n, k) and logits (n, k) of the rows of single tokens."""

    def restore(self, tokens: NDArray[np.int32], ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Take exported rows back. Raises ValueError or IndexError for ids outside the vocabulary."""

    def clear(self) -> None:
        """Forget every row."""

class FreeTrie:
    """Best-first tree of suffix matches and recycled candidates, with calibrated probabilities.

    The tries of all texts share `table` and, not copied, `counts` (cells, 2) and `prior` (cells,) float32:
    see drafters/calibration/free.py. Those that share `written`, which is `apart`, search each other's texts.
    Sources are 0 suffix, 1 recycle, 2 suffix found in `written`, 3 suffix found in the corpus.
    """

    def __init__(
        self,
        table: RecycleTable,
        counts: NDArray[np.float32],
        prior: NDArray[np.float32],
        use_suffix: bool = True,
        use_recycle: bool = True,
        written: SuffixAutomaton | None = None,
        corpus: Corpus | None = None,
    ) -> None: ...
    @property
    def order_scores(self) -> tuple[float, float]:
        """Decayed mean of 1 / (1 + rank of the right token) without and with the noise of its position."""

    def begin(self, context: NDArray[np.int32], shared: int = 0) -> None:
        """The text is now `context`, of which others search the last `shared` tokens, and whatever follows.

        If it extends the text before, that goes on.
        """

    def append(self, token: int) -> None:
        """Add a token without scoring."""

    def observe(
        self, tokens: Sequence[int], seed: int = 0, position: int = 0, temperature: float = 0.0
    ) -> None:
        """Score the candidates before each of `tokens`, the first of which is at `position`; then add it."""

    def update_tree(
        self,
        previous: int,
        token: int,
        tokens: NDArray[np.int32],
        parents: NDArray[np.int32],
        logits: LogitRows,
    ) -> None:
        """Rows (1 + n, V) of a verified tree of n nodes; its root is `token`, which came after `previous`."""

    def grow(
        self,
        limit: int,
        leaves: int,
        seed: int = 0,
        position: int = 0,
        temperature: float = 0.0,
        coupled: bool = False,
        path: Sequence[int] = (),
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.uint8]]:
        """Tokens, parents, path probabilities and sources of the best tree below the text and `path`.

        `position` is that of the first token after the text; probabilities are given that `path` is right.

        Raises:
            IndexError: `path` has a token outside the vocabulary.
        """

def best_prefix(
    probs: NDArray[np.float32],
    parents: NDArray[np.int32],
    costs: NDArray[np.float64],
    host_ms: float,
    leaf_ms: float,
    most_ms: float = ...,
    one_leaf: bool = False,
) -> tuple[int, int, int, int, float, float]:
    """Leaf, nodes, width, extra leaves, gain and milliseconds of the prefix with the highest expected rate.

    Widths that cost more than `most_ms` are left out. With `one_leaf` it is a prefix of one of the draft's
    chains: of the one that ends at node `leaf`, or of the draft itself, which is a chain then, if that is -1.

    Raises:
        ValueError: no width has a finite cost, or the arrays are no draft.
    """

_DraftArrays = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.uint8]]

MODEL_SHAPE: tuple[int, ...]
PLACE_SHAPE: tuple[int, ...]
BESIDE_SHAPE: tuple[int, ...]

_Cell = tuple[int, int, int, int]
_Place = tuple[int, int]

class ModelCounts:
    """How often a source that costs time is right: hits and trials, which are borrowed and learned further.

    Arrays are those of `specx.drafters.calibration.model.ModelCalibration`.

    Raises:
        ValueError: a shape is wrong.
    """

    def __init__(
        self,
        cells: NDArray[np.float64],
        margins: NDArray[np.float64],
        forecasts: NDArray[np.float64],
        all: NDArray[np.float64],
        beside: NDArray[np.float64],
        agreed: NDArray[np.float64],
        tokens: NDArray[np.float64],
    ) -> None: ...
    @staticmethod
    def cell(noisy: bool, margin: float, depth: int, agreement: int) -> _Cell:
        """Index of the cell of a proposed token; the first of a draft has depth 1. What the free drafters say
        there: 0 nothing, 1 another token, 2 the same one."""

    @staticmethod
    def first(noisy: bool, free: float) -> _Place:
        """Index of the forecast of the first token, where the free drafters' best has probability `free`."""

    @staticmethod
    def following(noisy: bool, margin: float) -> _Place:
        """Index of the forecast of the token after one of `margin`."""

    def hazard(self, cell: _Cell) -> float:
        """Probability that a token of the cell is right if those before it are."""

    def forecast(self, place: _Place) -> float:
        """Probability that the next token will be right, before it is known."""

    def later(self, noisy: bool) -> float:
        """Probability that a token further on will be right if those before it are."""

    def expected_beside(self, noisy: bool, hazards: Sequence[float]) -> list[tuple[float, float, float]]:
        """For tokens of the free drafters with these hazards: how likely the source says it, is right, and
        both."""

    def score(self, cell: _Cell, place: _Place, right: bool) -> None:
        """A token of `cell`, forecast from `place`, was `right` or not."""

    def score_beside(self, noisy: bool, free: float, free_right: bool, right: bool) -> None:
        """A token was `right` or not where the free drafters' was, which was thought right with `free`."""

    def score_said(self, noisy: bool, free: float, said: bool) -> None:
        """It `said` what the free drafters did, which was thought right with `free`, or something else."""

class Below:
    """How sure the free drafters are, on average, below tokens of a source that they did not claim."""

    def __init__(self) -> None: ...
    def observe(self, hazards: Sequence[float]) -> None:
        """They were so sure of their claims there, each given that those before it are right."""

    def hazards(self) -> list[float]:
        """Of the next tokens, each given that those before it are right; none where nothing is ever said."""

class AskedChain:
    """What a source that costs time has given in the present step, beside the free draft.

    Args:
        below: what the free drafters say below the chain is counted there.
        source: its index.
    """

    def __init__(self, below: Below, source: int) -> None: ...
    def begin(self, counts: ModelCounts, noisy: bool, free: _DraftArrays, one_leaf: bool) -> None:
        """A step begins with the free draft; with `one_leaf` only chains are possible.

        Raises:
            ValueError: the arrays are no draft.
        """

    @property
    def tokens(self) -> list[int]:
        """What it has given."""

    def __len__(self) -> int: ...
    def foresee(self, others: Sequence[AskedChain] = ()) -> Foresight:
        """What is expected of the next calls, beside the chains of other sources.

        Raises:
            ValueError: no step has begun.
        """

    def add(self, tokens: Sequence[int], margins: Sequence[float]) -> bool:
        """It has given these tokens, each so far ahead of the runner-up.

        Returns:
            Whether there is a chain now, and the free draft has nothing below it.

        Raises:
            ValueError: there is not one margin for each, or no step has begun.
        """

    def draft(self, below: _DraftArrays | None = None, others: Sequence[AskedChain] = ()) -> _DraftArrays:
        """Arrays of the free draft, the chain, and the chains of other sources.

        `below` is what the free drafters say below the chain, given that it is right; it is counted, and part
        of the draft until tokens are added.
        """

    def score(self, emitted: Sequence[int]) -> list[tuple[float, bool]]:
        """Learn from what was emitted, up to the first token that was wrong, and forget the step.

        Returns:
            How likely each of them was thought right, and whether it was.
        """

_StepCosts = tuple[NDArray[np.float64], float, float, float, float, bool]  # specx.drafters.base.StepCosts

class Foresight:
    """What is expected of a source before it is asked; `AskedChain.foresee` gives one.

    Args:
        counts, noisy: what to expect where the free drafters claim something.
        claiming, path: arrays of the draft that says what comes next, and where in it that is.
        first, later: hazards of the source's next token, and of one further on, where nothing is claimed.
        below: the same of what the free drafters say after a token of the source that they did not.
        draft: arrays of the draft that the chain is merged into.
        chain, hazards: what the source has given in this step, and how likely each token is right.
        source: its index.

    Raises:
        ValueError: lengths do not go together, or the arrays are no draft.
    """

    def __init__(
        self,
        counts: ModelCounts,
        noisy: bool,
        claiming: _DraftArrays,
        path: Sequence[int],
        first: float,
        later: float,
        below: Sequence[float],
        draft: _DraftArrays,
        chain: Sequence[int],
        hazards: Sequence[float],
        source: int,
    ) -> None: ...
    @property
    def claims(self) -> tuple[list[int], list[float]]:
        """What the free drafters claim comes next: tokens, and how likely each is right if those before it
        are."""

    def worth_checking(self, most: int, further_ms: float, token_ms: float) -> int:
        """How many of the first `most` claims are worth checking in one call.

        Another one costs `further_ms`, and spares a call of `token_ms` if it and all before it are right and
        what the source says.
        """

    def drafts(self, checked: int, asked: int) -> list[tuple[float, _DraftArrays]]:
        """What may come of `asked` calls, the first of which checks so many claims: the arrays of drafts as
        they would be, each with the probability of that. Tokens that are not known are -1.

        Raises:
            ValueError: nothing is asked, or more is checked than is claimed.
        """

    def expected(self, checked: int, asked: int, spent_ms: float, costs: _StepCosts) -> tuple[float, float]:
        """Tokens and milliseconds that are expected of the step after so many calls, by which `spent_ms` is
        spent.

        Raises:
            ValueError: as `drafts` and `best_prefix`.
        """

    def gain(
        self,
        checked: int,
        times: Sequence[int],
        most: int,
        before_ms: float,
        each_ms: float,
        affordable_ms: float,
        rate: float,
        costs: _StepCosts,
    ) -> tuple[float, float]:
        """The most milliseconds that any of so many `times` gains, and tokens then: a
        `specx.drafters.base.Gain`.

        Raises:
            ValueError: as `expected`.
        """

def merge_chain(
    tokens: NDArray[np.int32],
    parents: NDArray[np.int32],
    probs: NDArray[np.float32],
    sources: NDArray[np.uint8],
    chain: Sequence[int],
    hazards: Sequence[float],
    source: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.uint8]]:
    """The tree of a draft and a chain of another source, as `specx.drafters.merge` describes it.

    Raises:
        ValueError: the arrays are no draft, or chain and hazards differ in length.
    """

def graft(
    tokens: NDArray[np.int32],
    parents: NDArray[np.int32],
    probs: NDArray[np.float32],
    sources: NDArray[np.uint8],
    path: Sequence[int],
    below_tokens: NDArray[np.int32],
    below_parents: NDArray[np.int32],
    below_probs: NDArray[np.float32],
    below_sources: NDArray[np.uint8],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.uint8]]:
    """A draft with a tree under the node that the tokens of `path` lead to, as `specx.drafters.merge` says.

    Raises:
        ValueError: the arrays are no drafts, or the draft does not have the path.
    """

def path_to(
    tokens: NDArray[np.int32],
    parents: NDArray[np.int32],
    probs: NDArray[np.float32],
    sources: NDArray[np.uint8],
    leaf: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32], NDArray[np.uint8]]:
    """The path from the root of a draft to the node `leaf`.

    Raises:
        ValueError: the arrays are no draft, or there is no such node.
    """

def token_after(tokens: NDArray[np.int32], parents: NDArray[np.int32], path: Sequence[int]) -> int:
    """The most promising token of a draft after the tokens of `path`; -1 if there is none."""

def read_bandwidth(bytes: int, threads: int, repeats: int) -> float:
    """Bytes per second that `threads` threads read from fresh memory of `bytes` bytes; the best of `repeats`.

    Raises:
        ValueError: no thread, no repeat, or less than a megabyte.
    """

def integer_peak(instructions: str, threads: int, repeats: int) -> float:
    """Multiplications and additions a second that `threads` threads do with integers of 8 bits, in registers,
    with one of the device's instruction sets; the best of `repeats`, 0 where there is no such measurement.

    Raises:
        ValueError: no thread, or no repeat.
    """

def dot_rows(
    table: NDArray[np.uint8],
    ids: NDArray[np.int32],
    vectors: NDArray[np.float32],
    sums: NDArray[np.float32],
    dot: int,
    quantize: int,
    quantized_bytes: int,
) -> None:
    """Rows of a matrix in one of ggml's types times vectors, by ggml's own arithmetic.

    Args:
        table: (V, bytes of a row), as ggml keeps them.
        ids: (m,) the rows.
        vectors: (n, d).
        sums: (n, m); the products are put there.
        dot, quantize: addresses of ggml's functions: of rows of this type and a quantized vector, and for
            quantizing a vector so.
        quantized_bytes: of a quantized vector.

    Raises:
        ValueError: there is no such row, or sizes do not go together.
    """

class LayerTap:
    """Copies the inputs of some layers out of what llama.cpp computes: a callback for `cb_eval`.

    Args:
        name, nbytes, get: addresses of ggml_get_name, ggml_nbytes and ggml_backend_tensor_get.

    Attributes:
        callback: address of the function.
        address: what the function takes as its user data. It must outlive the context.
    """

    callback: int
    address: int

    def __init__(self, name: int, nbytes: int, get: int) -> None: ...
    def watch(self, layers: Sequence[int]) -> None:
        """Copy what enters these layers; 0 is none of them that it can tell."""

    def begin(self, rows: NDArray[np.float32]) -> None:
        """The next call's rows go to `rows` (at least as many, k * d), as they are computed.

        The array must live until `end`.

        Raises:
            ValueError: the columns cannot be those of k layers.
        """

    def end(self) -> int:
        """How many rows came of each layer; -1 if it was not the same number, or there was no room."""

def distinct_tokens(section: bytes, count: int) -> int:
    """How many of the `count` texts of an array of strings of a GGUF file differ; empty ones all do.

    Raises:
        ValueError: a text ends beyond `section`.
    """

def end_of_texts(data: bytes, start: int, count: int) -> tuple[int, int]:
    """Where the `count` texts of an array of strings of a GGUF file end, which begins at `start` of `data`.

    Returns:
        The end and 0; or -1, if they go on beyond `data`, and the bytes of the text that does, 0 if not even
        its length is there.
    """

def ending_tokens(function: int, vocabulary: int, count: int) -> list[int]:
    """Tokens below `count` that end a text.

    Args:
        function: address of llama_vocab_is_eog.
        vocabulary: address of the llama_vocab.
        count: number of tokens.
    """

def tokens_of_kind(function: int, vocabulary: int, count: int, kinds: int) -> list[int]:
    """Tokens below `count` that have one of the attributes `kinds` (bits of llama_token_attr).

    Args:
        function: address of llama_vocab_get_attr.
        vocabulary: address of the llama_vocab.
        count: number of tokens.
        kinds: attributes, one bit each.
    """

class Pieces:
    """The tokens of a vocabulary as bytes. Those without any, as control tokens, are never found.

    Args:
        texts: bytes of each token.
        function, vocabulary, count: address of llama_token_to_piece, what it takes, and how many tokens there
            are.
    """

    @overload
    def __init__(self, texts: Sequence[bytes]) -> None: ...
    @overload
    def __init__(self, function: int, vocabulary: int, count: int) -> None: ...
    def __len__(self) -> int: ...
    def piece(self, token: int) -> bytes:
        """Bytes of a token. Raises IndexError."""

    def find(self, text: bytes) -> int:
        """The lowest token with these bytes, -1 if there is none."""

    def match(self, other: Pieces) -> NDArray[np.int32]:
        """For each token (n,) int32 the lowest one of `other` with the same bytes, -1 if there is none."""

    def longer(self, text: bytes) -> NDArray[np.int32]:
        """Tokens (m,) int32 that begin with `text` and go on, sorted by their bytes."""
