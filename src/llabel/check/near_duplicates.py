"""Which rows nearly repeat an earlier row: MinHash over character shingles, checked exactly.

Similarity is the Jaccard index of character 5-gram sets, per field. Candidates come from locality
sensitive hashing of MinHash signatures (Broder 1997, "On the resemblance and containment of
documents"; banding as in Leskovec, Rajaraman & Ullman, "Mining of Massive Datasets", 3.4), and each
candidate is then compared exactly, so whatever is reported is near; about 0.2 % of the pairs right
at the threshold are missed.

Memory is 320 bytes a row beside the texts, and no step looks at all pairs, whatever the texts are.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llabel.data.rows import folded
from llabel.task import Text

SHINGLE = 5  # characters; words would not do for languages written without spaces
MAX_CHARS = 4_000  # of a field; bounds the time long documents take
BANDS, BAND_ROWS = 16, 5  # a pair at Jaccard 0.8 meets in a band with probability 0.998
ESTIMATE_SLACK = 0.15  # 3.4 standard errors of the MinHash estimate at Jaccard 0.8
BUCKET_HEADS = 8  # a row is compared with the first rows of its bucket only
MAX_COMPARED = 16  # and a row exactly with so many of these
BLOCK_ROWS = 1_000


def jaccard(a: str, b: str) -> float:
    """Compare two texts by the Jaccard index of their shingle sets, 0 (nothing shared) to 1."""
    first, second = _shingles(a), _shingles(b)
    return len(first & second) / len(first | second)


def first_neighbours(rows: Sequence[Text], threshold: float = 0.8) -> npt.NDArray[np.int64]:
    """Find for each row the first earlier row that it nearly repeats.

    Two rows are near when *every* field's Jaccard index is at least `threshold`: two questions
    about one passage are different rows.

    Args:
        rows: n rows of fields, in the order in which "earlier" is meant.
        threshold: Jaccard index, above 0.5 (below it the banding would miss pairs) and at most 1.

    Returns:
        (n,) position of the earliest near row found before it, or -1.

    Raises:
        ValueError: `threshold` is out of range.
    """
    if not 0.5 < threshold <= 1:
        raise ValueError(f"threshold must be above 0.5 and at most 1, got {threshold}")
    found = np.full(len(rows), -1, dtype=np.int64)
    if len(rows) < 2:
        return found

    # Every field must be near, so the most telling field alone yields all candidates, and a
    # context that thousands of rows share does not put them all into one bucket.
    key = _most_distinct_field(rows)
    signatures = _signatures([row[key] for row in rows])
    tried = np.zeros(len(rows), dtype=np.int64)
    for later, earlier in _candidates(signatures, threshold - ESTIMATE_SLACK):
        if found[later] < 0 and tried[later] < MAX_COMPARED:
            tried[later] += 1
            if _is_near(rows[later], rows[earlier], threshold):
                found[later] = earlier
    return found


def _shingles(text: str) -> set[str]:
    text = folded(text[:MAX_CHARS])
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}


def _is_near(a: Text, b: Text, threshold: float) -> bool:
    cheapest_first = sorted(zip(a, b, strict=True), key=lambda pair: len(pair[0]))
    return all(jaccard(x, y) >= threshold for x, y in cheapest_first)


def _most_distinct_field(rows: Sequence[Text]) -> int:
    return max(range(len(rows[0])), key=lambda field: len({hash(row[field]) for row in rows}))


def _signatures(texts: Sequence[str]) -> npt.NDArray[np.uint32]:
    """MinHash the texts: (n, BANDS · BAND_ROWS) smallest hash values of their shingles."""
    from sklearn.feature_extraction import FeatureHasher

    hasher = FeatureHasher(
        n_features=2**31 - 1, input_type="string", alternate_sign=False, dtype=np.float32
    )
    # Multiply-add-shift, a strongly universal family for 32-bit keys (Dietzfelbinger 1996).
    draws = np.random.default_rng(0).integers(0, 2**64, (2, BANDS * BAND_ROWS), dtype=np.uint64)
    signatures = np.empty((len(texts), BANDS * BAND_ROWS), dtype=np.uint32)
    for start in range(0, len(texts), BLOCK_ROWS):
        block = hasher.transform(map(_shingles, texts[start : start + BLOCK_ROWS]))
        shingles = block.indices.astype(np.uint64)  # (shingles of the block,)
        for column in range(draws.shape[1]):
            hashed = (shingles * draws[0, column] + draws[1, column]) >> np.uint64(32)
            smallest = np.minimum.reduceat(hashed, block.indptr[:-1])  # no row is empty
            signatures[start : start + BLOCK_ROWS, column] = smallest
    return signatures


def _candidates(signatures: npt.NDArray[np.uint32], least: float) -> Iterator[tuple[int, int]]:
    """Yield (later, earlier) pairs that share a band and agree in `least` of the signature.

    Pairs come sorted. Only the first rows of a bucket are compared with its other rows, so that a
    family of k look-alikes costs k comparisons and not k².
    """
    n, columns = signatures.shape
    factors = np.random.default_rng(1).integers(0, 2**64, (columns,), dtype=np.uint64)
    pairs = [np.empty(0, dtype=np.int64)]
    for start in range(0, columns, BAND_ROWS):
        band = slice(start, start + BAND_ROWS)
        # One number a band: a chance collision only adds a candidate, which is then looked at.
        bands = (signatures[:, band] * factors[band]).sum(axis=1, dtype=np.uint64)
        _, bucket, sizes = np.unique(bands, return_inverse=True, return_counts=True)
        order = np.argsort(bucket, kind="stable")  # within a bucket the earlier row comes first
        starts = np.repeat(np.cumsum(sizes) - sizes, sizes)  # (n,) where each row's bucket begins
        for head in range(BUCKET_HEADS):
            behind = np.flatnonzero(np.arange(n) > starts + head)
            later, earlier = order[behind], order[starts[behind] + head]
            agree = (signatures[later] == signatures[earlier]).mean(axis=1) >= least
            pairs.append(later[agree] * n + earlier[agree])
    for pair in np.unique(np.concatenate(pairs)):
        yield int(pair // n), int(pair % n)
