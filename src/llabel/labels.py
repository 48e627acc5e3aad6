"""Label words → a token trie; a proper distribution over labels from softmaxes at its branchings.

Labels that share first tokens cannot be told apart at the answer position alone, and summed
log-probabilities favour short labels. So each label's probability is the product, down its path,
of a softmax over *the children of each branching node only*: all leaves together sum to one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llabel.errors import InputError
from llabel.task import Label, TargetLabel

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Branching:
    """A node of the trie with two children or more.

    Attributes:
        prefix: tokens between the answer position and this node; empty at the root.
        children: token ids that may follow, ascending; the end token stands for "stop here".
    """

    prefix: Tokens
    children: Tokens


@dataclass(frozen=True, slots=True)
class TrieTarget:
    """One of several targets that a prompt is asked for.

    Attributes:
        tail: tokens between the prompt and this target's answer position.
        first, stop: its classes are those from `first` to before `stop`.
    """

    tail: Tokens
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class LabelTrie:
    """Every label as a path through branchings.

    Attributes:
        words: (n_classes,) the text of each answer.
        tokens: (n_classes,) its token ids as they follow the prompt, without any end token.
        end_token: closes an answer (the tokenizer's end of sequence).
        branchings: nodes where a choice is made, by depth, the root first.
        steps: (n_classes,) pairs (index of branching, index of child) from the root down.
        targets: several targets, each with a distribution over its own classes; empty where there
            is one. `tokens` begin with the target's tail then, and so do the branchings' prefixes.
    """

    words: tuple[str, ...]
    tokens: tuple[Tokens, ...]
    end_token: int
    branchings: tuple[Branching, ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]
    targets: tuple[TrieTarget, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest label, its end token included."""
        return 1 + max(map(len, self.tokens))

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Each distribution's first class and the one after its last: one a target."""
        return [(t.first, t.stop) for t in self.targets] or [(0, len(self.words))]


def label_words(classes: Sequence[Label], given: Mapping[str, str] | None = None) -> list[str]:
    """The text the LLM answers for each class: as given, else "true"/"false" for bool, else str.

    Args:
        classes: labels in class order.
        given: label (as text, or as its default words) → words, for some or all labels.

    Raises:
        InputError: a given label is none of the classes, its words are empty, or another label's.
    """
    given = dict(given or {})
    owners: dict[str, Label] = {}
    for label in classes:
        default = str(label).lower() if isinstance(label, bool | np.bool_) else str(label)
        key = str(label) if str(label) in given else default
        words = given.pop(key, default).strip()
        if not words:
            raise InputError(
                f"The label {label!r} has no words to answer with. Give it some with "
                f"--label-words '{label}=...'."
            )
        if words in owners:
            raise InputError(
                f"The labels {owners[words]!r} and {label!r} have the same words {words!r}. "
                f"Give one of them others with --label-words '{label}=...'."
            )
        owners[words] = label
    if given:
        raise InputError(
            f"--label-words names {next(iter(given))!r}, which is no label. "
            f"Labels: {', '.join(map(str, classes))}."
        )
    return list(owners)


def by_target(classes: Sequence[Label]) -> dict[str, list[Label]]:
    """The labels of each of several targets, in class order; {} where there is one target."""
    found: dict[str, list[Label]] = {}
    for label in classes:
        if isinstance(label, TargetLabel):
            found.setdefault(label.target, []).append(label.label)
    return found


def target_words(
    targets: Mapping[str, Sequence[Label]], given: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """`label_words` of each of several targets, by name.

    Args:
        targets: for each, its labels in class order.
        given: words by ``TARGET.LABEL``, for some or all labels.

    Raises:
        InputError: as `label_words`, or a name that begins with no target's.
    """
    mine: dict[str, dict[str, str]] = {name: {} for name in targets}
    for key, words in (given or {}).items():
        name = max((n for n in targets if key.startswith(f"{n}.")), key=len, default=None)
        if name is None:
            named = ((n, ls) for n, ls in targets.items() if key in map(str, ls))
            first, labels = next(named, next(iter(targets.items())))
            label = key if key in map(str, labels) else labels[0]
            raise InputError(
                f"--label-words {key!r}: with several targets write TARGET.LABEL=WORDS, such as "
                f"'{first}.{label}=...'. Targets: {', '.join(targets)}."
            )
        mine[name][key[len(name) + 1 :]] = words
    found = {}
    for name, labels in targets.items():
        try:
            found[name] = label_words(labels, mine[name])
        except InputError as error:
            raise InputError(f"Target {name}: {error}") from error
    return found


def compile_labels(
    words: Sequence[str], tokenise_answer: Callable[[str], Sequence[int]], end_token: int | None
) -> LabelTrie:
    """Compile label words to a trie.

    Args:
        words: (n_classes,) distinct, non-empty answers.
        tokenise_answer: words → token ids in the context of the template (see `AnswerTokeniser`).
        end_token: id of the token that ends an answer.

    Raises:
        InputError: fewer than two labels; a label without tokens or with the end token in it; two
            labels with the same tokens; a model that has no end token.
    """
    if end_token is None:
        raise InputError("This model's tokenizer has no eos_token, so no answer could ever end.")
    if len(words) < 2:
        raise InputError(f"A classifier needs at least two labels; given: {list(words)}.")
    tokens = [tuple(tokenise_answer(word)) for word in words]
    seen: dict[Tokens, str] = {}
    for word, path in zip(words, tokens, strict=True):
        if not path:
            raise InputError(f"The label {word!r} has no tokens for this model's tokenizer.")
        if end_token in path:
            raise InputError(
                f"The label {word!r} holds the token that ends an answer. Give it other words with "
                "--label-words."
            )
        if path in seen:
            raise InputError(
                f"The labels {seen[path]!r} and {word!r} have the same tokens {list(path)} for "
                "this model. Give one of them other words with --label-words."
            )
        seen[path] = word
    # Only where one label is the beginning of another must its end be a choice of its own.
    needs_end = {p for p in tokens if any(q != p and q[: len(p)] == p for q in tokens)}
    paths = [(*path, end_token) if path in needs_end else path for path in tokens]

    children: dict[Tokens, set[int]] = {}
    for path in paths:
        for depth, token in enumerate(path):
            children.setdefault(path[:depth], set()).add(token)
    prefixes = sorted((p for p, c in children.items() if len(c) > 1), key=lambda p: (len(p), p))
    branchings = tuple(Branching(p, tuple(sorted(children[p]))) for p in prefixes)
    number = {branching.prefix: i for i, branching in enumerate(branchings)}
    steps = tuple(
        tuple(
            (number[path[:depth]], branchings[number[path[:depth]]].children.index(token))
            for depth, token in enumerate(path)
            if path[:depth] in number
        )
        for path in paths
    )
    return LabelTrie(tuple(words), tuple(tokens), end_token, branchings, steps)


def join_tries(tries: Mapping[str, tuple[Tokens, LabelTrie]]) -> LabelTrie:
    """One trie for several targets, all read behind the same prompt.

    Each target's tail leads to its own trie, so that its answer depends on no other's.

    Args:
        tries: for each target, by name, its tail and the trie of its labels.

    Raises:
        InputError: two targets are asked for so alike that one's tail begins the other's.
    """
    tails = {name: tail for name, (tail, _) in tries.items()}
    for name, tail in tails.items():
        alike = [n for n, other in tails.items() if n != name and other[: len(tail)] == tail]
        if alike:
            raise InputError(
                f"--label: {name!r} and {alike[0]!r} are asked for in the same words. Rename one "
                "of the columns."
            )
    below = [
        Branching(tail + branching.prefix, branching.children)
        for tail, trie in tries.values()
        for branching in trie.branchings
    ]
    order = sorted(range(len(below)), key=lambda n: (len(below[n].prefix), below[n].prefix))
    place = {number: at for at, number in enumerate(order)}
    steps: list[tuple[tuple[int, int], ...]] = []
    targets: list[TrieTarget] = []
    before = 0  # branchings of the targets that were joined already
    for tail, trie in tries.values():
        targets.append(TrieTarget(tail, len(steps), len(steps) + len(trie.words)))
        steps += [tuple((place[before + n], child) for n, child in path) for path in trie.steps]
        before += len(trie.branchings)
    return LabelTrie(
        words=tuple(word for _, trie in tries.values() for word in trie.words),
        tokens=tuple((*tail, *path) for tail, trie in tries.values() for path in trie.tokens),
        end_token=next(iter(tries.values()))[1].end_token,
        branchings=tuple(below[number] for number in order),
        steps=tuple(steps),
        targets=tuple(targets),
    )


class AnswerTokeniser:
    """Label words → the tokens that follow a prompt, which may differ from the words alone.

    Args:
        encode: text → token ids, special tokens neither added nor parsed.
        tail: the end of the template (see `prompt.answer_tail`).
        joint: what stands between prompt and answer.
    """

    def __init__(self, encode: Callable[[str], Sequence[int]], tail: str, joint: str) -> None:
        self.encode, self.tail, self.joint = encode, tail, joint

    def __call__(self, word: str) -> Tokens:
        """Tokens of `word` after the prompt.

        Raises:
            InputError: the word merges with the end of the prompt, so that the prompt's own tokens
                would change with the answer.
        """
        prompt = tuple(self.encode(self.tail))
        whole = tuple(self.encode(self.tail + self.joint + word))
        if whole[: len(prompt)] != prompt:
            newline = "a single newline" if self.tail.endswith("\n\n") else "a newline"
            raise InputError(
                f"The label {word!r} melts into the end of the template {self.tail[-20:]!r} for "
                f"this tokenizer. End the template with ':' or {newline}."
            )
        return whole[len(prompt) :]
