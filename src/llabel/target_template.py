"""One prompt for several targets: what they share, and what follows for each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llabel.errors import InputError
from llabel.template import (
    BUILT_IN_TEMPLATES,
    Hole,
    Template,
    assemble,
    built_in,
    heading_of,
    parse_template,
    read_template,
    refuse_instruction,
)

TARGETS_INSTRUCTION = (
    "Classify the input. After each heading answer with exactly one of its labels: {labels}"
)


def label_list(targets: Mapping[str, Sequence[str]]) -> str:
    """The headings of several targets, each with its label words.

    Raises:
        InputError: two have the same heading.
    """
    headings = [heading_of(target) for target in targets]
    if twice := [heading for heading in headings if headings.count(heading) > 1]:
        raise InputError(
            f"--label: two columns are both asked for as {twice[0]!r}. Rename one of them."
        )
    words = zip(headings, targets.values(), strict=True)
    return "; ".join(f"{heading}: {', '.join(labels)}" for heading, labels in words)


def load_targets_template(
    name: str,
    fields: Sequence[str],
    targets: Mapping[str, Sequence[str]],
    instruction: str | None = None,
) -> Template:
    """A template that asks for several targets one by one behind the same prompt.

    `qa` asks `### Author:` and `### Language:`, the other built-in ones `Author:` and `Language:`.
    In a file `{target}` is the heading, and what stands before it is read once; without it the
    heading and a colon stand at the end. `{labels}` is all headings with their label words.

    Args:
        name: one of `BUILT_IN_TEMPLATES`, or a path.
        fields: the text columns; each must occur in the template.
        targets: for each target, by its column's name, what its answers look like in class order.
        instruction: what `alpaca` asks for.

    Raises:
        InputError: as `load_template`; two targets with the same heading; `{target}` twice, before
            a text column or without anything behind it.
    """
    refuse_instruction(name, instruction)
    headings = [heading_of(target) for target in targets]
    labels = label_list(targets)
    gap: str | None = None  # between prompt and heading, where a file says
    if name in BUILT_IN_TEMPLATES:
        asked = (instruction or TARGETS_INSTRUCTION).replace("{labels}", labels)
        pieces, after = built_in(name, fields, asked, targets=True), ":"
    else:
        source, found, rest = read_template(name).partition("{target}")
        pieces = parse_template(name, source, fields, labels)
        if "{target}" in rest or any(
            isinstance(p, Hole) for p in parse_template(name, rest, fields, "")
        ):
            raise InputError(
                f"Template {name!r}: {{target}} must stand once, behind the last text column, "
                "where the answer is asked for."
            )
        after = "".join(map(str, parse_template(name, rest, fields, labels))) if found else ":"
        gap = source[len(source.rstrip(" ")) :] if found else None
    head = assemble(name, pieces, fields)
    gap = head.joint if gap is None else gap
    ends = after.rstrip(" ")
    if not ends:
        raise InputError(
            f"Template {name!r} ends with {{target}}. Put a mark such as ':' after it, so that the "
            "model can tell where the answer begins."
        )
    joint = after[len(ends) :] or ("" if ends[-1].isspace() else " ")
    return replace(head, joint=joint, tails=tuple(f"{gap}{heading}{ends}" for heading in headings))
