"""What the native module exports. The NumPy references beside it say in full what each function does."""

from collections.abc import Mapping, Sequence, Set
from typing import overload

import numpy as np
from numpy.typing import NDArray

INTERFACE: str
"""SHA-256 of this file as the module was built: what tells that it is of another version."""

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

    def descend(
        self,
        draft: Draft,
        stops: Set[int],
        seed: int,
        position: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
    ) -> tuple[list[int], list[int]]:
        """The tokens that are chosen along a draft, up to the first that it does not have or that is one of
        `stops`, and the row of each.

        Row 0 is that of the draft's root, row i + 1 of node i; `position` is that of the first token.

        Raises:
            ValueError: there are fewer rows, or no logit of the first is above -inf; before another such row
                the tokens end.
        """

SUFFIX_SHAPE: tuple[int, ...]
RECYCLE_SHAPE: tuple[int, ...]

class Draft:
    """A tree of guessed tokens, most promising first.

    Every prefix of the nodes is itself a tree, and the best tree of so many: probabilities never rise, and a
    parent comes before its children. It does not change.

    Args:
        tokens: (n,) int32.
        parents: (n,) int32 index of the parent node; -1 hangs below the last token of the text.
        probs: (n,) float32 estimated probability that the whole path to the node is accepted.
        sources: (n,) uint8 index into the drafter's `source_names`.

    Raises:
        ValueError: the arrays differ in length, or a parent does not come first.
    """

    def __init__(
        self,
        tokens: NDArray[np.int32],
        parents: NDArray[np.int32],
        probs: NDArray[np.float32],
        sources: NDArray[np.uint8],
    ) -> None: ...
    @staticmethod
    def of_chain(tokens: Sequence[int], probs: Sequence[float], source: int = 0) -> Draft:
        """A chain of `tokens`, of which the path to each is accepted with the probability in `probs`.

        Raises:
            ValueError: they differ in length.
        """

    @property
    def tokens(self) -> NDArray[np.int32]:
        """(n,) int32; a copy, as are the other arrays."""

    @property
    def parents(self) -> NDArray[np.int32]:
        """(n,) int32."""

    @property
    def probs(self) -> NDArray[np.float32]:
        """(n,) float32."""

    @property
    def sources(self) -> NDArray[np.uint8]:
        """(n,) uint8."""

    def __len__(self) -> int: ...
    def head(self, n: int) -> Draft:
        """The best tree of `n` nodes, or of as many as there are."""

    def chain(self, leaf: int) -> Draft:
        """The path from the root to the node `leaf`.

        Raises:
            ValueError: there is no such node.
        """

    def likeliest_chain(self) -> Draft:
        """The chain with the most expected tokens."""

    def padded(self, n: int) -> Draft:
        """The same made `n` nodes long by hopeless ones below its last node."""

    def depth_first(self) -> Draft:
        """The same nodes, depth first: the likeliest way from the root and what it leads to, then the others.

        Its prefixes are no longer the best trees of so many nodes.
        """

    def merged(self, tokens: Sequence[int], hazards: Sequence[float], source: int) -> Draft:
        """One tree of this and a chain that another source proposes for the same place, best first.

        The chain says at each of its nodes what comes next with its hazard h, so the other candidates share
        1 - h in the proportions they had. What both propose is one node; how much surer agreement makes it is
        for whoever estimates h to know.

        Args:
            tokens: the chain, from below the root; -1 stands for a token that is not known.
            hazards: of each of them, the probability that it is right if those before it are.
            source: index of the chain's source, for nodes that this does not have.

        Raises:
            ValueError: tokens and hazards differ in length.
        """

    def grafted(self, path: Sequence[int], below: Draft) -> Draft:
        """This with the tree `below` under the node that the tokens of `path` lead to, which has no children.

        Args:
            path: tokens from below the root.
            below: its probabilities are given that the path is right.

        Raises:
            ValueError: there is no such path.
        """

    def best_after(self, path: Sequence[int]) -> int | None:
        """The most promising token after the tokens of `path`, None if there is none."""

    def tree(self, last: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Tokens and parents, (n + 1,) int32 each, of what verifies it: row 0 is `last`, the last token of
        the text, with the parent -1, and row i + 1 is node i."""

    def rows_along(self, tokens: Sequence[int]) -> list[int]:
        """The rows of that tree along `tokens`, the root first: one more than tokens.

        Raises:
            ValueError: there is no such path.
        """

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
        ValueError: a token is less than -1 or not less than 2^24, or n is 2^30 or more.
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
        draft: Draft,
        logits: LogitRows,
    ) -> None:
        """Rows (1 + n, V) of a verified draft of n nodes; its root is `token`, which came after `previous`.

        What fills a step up, hopeless nodes at its end, says nothing.

        Raises:
            ValueError: there are fewer rows, or they are not of this vocabulary.
        """

    def grow(
        self,
        limit: int,
        leaves: int,
        seed: int = 0,
        position: int = 0,
        temperature: float = 0.0,
        coupled: bool = False,
        path: Sequence[int] = (),
    ) -> Draft:
        """The best tree below the text and `path`.

        `position` is that of the first token after the text; probabilities are given that `path` is right.

        Raises:
            IndexError: `path` has a token outside the vocabulary.
        """

class StepCosts:
    """What a step of one text costs.

    Args:
        by_width: (W + 1,) float64 milliseconds of the forward call; infinite where a width is not allowed.
        host_ms: added to every step.
        leaf_ms: added for every leaf beyond the first.
        budget: plain steps that may be lost if nothing drafted comes true.
        one_leaf: whether only chains are possible.

    Attributes:
        plain_ms: the cheapest way to take one token.
        wider_ms: the cheapest call of more than one.
    """

    plain_ms: float
    wider_ms: float
    def __init__(
        self,
        by_width: NDArray[np.float64],
        host_ms: float = 0.0,
        leaf_ms: float = 0.0,
        budget: float = ...,
        one_leaf: bool = False,
    ) -> None: ...
    def affordable_ms(self, spent_ms: float = 0.0) -> float:
        """Milliseconds of the dearest call that the budget covers beside `spent_ms`; `plain_ms` always is."""

    def best(self, draft: Draft, spent_ms: float = 0.0) -> tuple[Draft, int, int, float, float]:
        """The prefix of `draft`, or of one of its chains, of the highest expected rate.

        Args:
            draft: what there is.
            spent_ms: what is spent besides.

        Returns:
            It, the width of the call, its leaves beyond the first, expected tokens, and milliseconds in all.

        Raises:
            ValueError: no width has a finite cost.
        """

CLIP: float
"""A step more than this many times off is an outlier."""
IN_A_ROW: int
"""Unless it was as many in a row."""

class Regimes:
    """Present milliseconds of a step by width, up to `max_width`, and depth: what was measured, corrected by
    real steps. specx/kernels/reference/regimes.py says how, and why.

    Raises:
        ValueError: `max_width` is not positive.
        IndexError: from what takes a width `n`, if there is none such.
    """

    def __init__(self, max_width: int) -> None: ...
    def rebase(self, measured: Mapping[int, NDArray[np.float64]]) -> None:
        """Take a new table, (max_width + 1,) by depth; what real steps said of depths that it has in common
        is kept. Without any, a step costs as much as it has tokens."""

    def reset(self) -> None:
        """A new measurement: what was thought of the machine as a whole is void."""

    def step_costs(
        self, length: int, unused: int, before: int = 0, switch_ms: float = 0.0
    ) -> NDArray[np.float64]:
        """`costs` of a step after one of the width `before`, as `Staircase.costs` tells; widths from `unused`
        on but for the widest, and 0, are infinite."""

    def costs(self, length: int) -> NDArray[np.float64]:
        """(max_width + 1,) present milliseconds by width, in a context of `length` tokens."""

    def total_costs(self, lengths: Sequence[int]) -> NDArray[np.float64]:
        """`costs` of several contexts, added up."""

    def cost(self, n: int, length: int) -> float:
        """Milliseconds that a step of `n` tokens is expected to take at present."""

    def quiet(self, n: int, length: int) -> float:
        """The same as it was measured, whatever real steps take now."""

    def nearest(self, length: int) -> int:
        """The measured depth that speaks most for a length.

        Raises:
            ValueError: there is none.
        """

    def corrections(self, n: int) -> dict[int, float]:
        """What real steps have made of the time of a width, by depth: a factor."""

    def observe(self, n: int, length: int, ms: float) -> float:
        """A real step of `n` tokens took `ms` milliseconds.

        Returns:
            What it showed the whole table to be off by: a factor below 1, as the machine cannot be too fast,
            and what is measured has been multiplied with it; else 1.

        Raises:
            ValueError: nothing was measured.
        """

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
    def begin(self, counts: ModelCounts, noisy: bool, free: Draft, one_leaf: bool) -> None:
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

    def draft(self, below: Draft | None = None, others: Sequence[AskedChain] = ()) -> Draft:
        """Arrays of the free draft, the chain, and the chains of other sources.

        `below` is what the free drafters say below the chain, given that it is right; it is counted, and part
        of the draft until tokens are added.
        """

    def score(self, emitted: Sequence[int]) -> list[tuple[float, bool]]:
        """Learn from what was emitted, up to the first token that was wrong, and forget the step.

        Returns:
            How likely each of them was thought right, and whether it was.
        """

class Foresight:
    """What is expected of a source before it is asked; `AskedChain.foresee` gives one.

    Args:
        counts, noisy: what to expect where the free drafters claim something.
        claiming, path: the draft that says what comes next, and where in it that is.
        first, later: hazards of the source's next token, and of one further on, where nothing is claimed.
        below: the same of what the free drafters say after a token of the source that they did not.
        draft: the draft that the chain is merged into.
        chain, hazards: what the source has given in this step, and how likely each token is right.
        source: its index.

    Raises:
        ValueError: lengths do not go together, or the arrays are no draft.
    """

    def __init__(
        self,
        counts: ModelCounts,
        noisy: bool,
        claiming: Draft,
        path: Sequence[int],
        first: float,
        later: float,
        below: Sequence[float],
        draft: Draft,
        chain: Sequence[int],
        hazards: Sequence[float],
        source: int,
    ) -> None: ...
    @property
    def claims(self) -> tuple[list[int], list[float]]:
        """What the free drafters claim comes next: tokens, and how likely each is right if those before it
        are."""

    @property
    def likely(self) -> float:
        """How likely the source's next token is right."""

    def worth_checking(self, most: int, further_ms: float, token_ms: float) -> int:
        """How many of the first `most` claims are worth checking in one call.

        Another one costs `further_ms`, and spares a call of `token_ms` if it and all before it are right and
        what the source says.
        """

    def drafts(self, checked: int, asked: int) -> list[tuple[float, Draft]]:
        """What may come of `asked` calls, the first of which checks so many claims: the arrays of drafts as
        they would be, each with the probability of that. Tokens that are not known are -1.

        Raises:
            ValueError: nothing is asked, or more is checked than is claimed.
        """

    def expected(self, checked: int, asked: int, spent_ms: float, costs: StepCosts) -> tuple[float, float]:
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
        costs: StepCosts,
    ) -> tuple[float, float]:
        """The most milliseconds that any of so many `times` gains, and tokens then: a
        `specx.drafters.base.Gain`.

        Raises:
            ValueError: as `expected`.
        """

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
    row_block: tuple[int, int],
    vector_block: tuple[int, int],
) -> None:
    """Rows of a matrix in one of ggml's types times vectors, by ggml's own arithmetic.

    Args:
        table: (V, bytes of a row), as ggml keeps them.
        ids: (m,) the rows.
        vectors: (n, d).
        sums: (n, m); the products are put there.
        dot, quantize: addresses of ggml's functions: of rows of this type and a quantized vector, and for
            quantizing a vector so.
        row_block, vector_block: values and bytes of a block of a row, and of a quantized vector.

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
