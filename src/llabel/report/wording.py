"""What the page says in words: the headline, the lists of rows to read, what leaks."""

from typing import Any

from llabel.comparison import CompareRecord

ENOUGH_SEEN = 30  # of fewer rows, one answer more moves their accuracy by over three points


def headline(record: CompareRecord) -> str:
    """The verdict in a few words; its reason tells the rest."""
    verdict = record["verdict"]
    choose = verdict["choose"]
    match verdict["kind"]:
        case "cannot_tell":
            return f"Can’t tell yet; for now, {choose}" if choose else "Can’t tell yet"
        case "majority_class":
            return "No rung beats the majority class"
        case "nothing_to_choose":
            return "Nothing to choose from"
        case "leakage":  # shown, or only not ruled out: the reason tells which
            sure = "is leakage" in verdict["reason"]
            return f"Most of this score {'is' if sure else 'may be'} leakage"
        case "no_llm" if choose:
            return f"Use {choose}, not the LLM"
        case "use_llm" if choose:
            return f"Use {choose}: the LLM is worth it"
    return f"Use {choose}" if choose else "No rung can be recommended"


def examples(record: CompareRecord) -> list[dict[str, Any]]:
    """Lists of rows to read, the likeliest to be mislabelled first."""
    errors = record["errors"]
    if errors is None:
        return []
    llm = errors["llm"] or "the LLM"
    found = (
        (
            "Every rung that reads the text is wrong",
            "No trained or prompted rung gets these right. Some may be mislabelled: read these "
            "first.",
            errors["all_wrong"],
            errors["all_wrong_count"],
        ),
        (
            f"{llm} is right, no simpler rung is",
            "Every simpler rung is wrong: this is what the LLM is paid for.",
            errors["only_llm"],
            errors["only_llm_count"],
        ),
        (
            f"{llm} is wrong, most simpler rungs are right",
            "More than half of the simpler rungs are right.",
            errors["only_simpler"],
            errors["only_simpler_count"],
        ),
        (
            f"Most confident errors of {errors['best']}",
            "Wrong answers to which the best rung gave the highest probability.",
            errors["most_confident"],
            errors["most_confident_count"],
        ),
    )
    keep = [entry for entry in found if errors["llm"] or "LLM" not in entry[0]]
    return [
        {"title": title, "what": what, "rows": rows, "count": count}
        for title, what, rows, count in keep
    ]


def lacks_texts(record: CompareRecord) -> bool:
    """Whether the examples' texts were left out."""
    return any(row["text"] is None for group in examples(record) for row in group["rows"])


def leak(record: CompareRecord) -> str:
    """`none` where every test row is unseen, `all` where none is, else `some`."""
    unseen, rows = record["data"]["unseen_test_rows"], record["data"]["rows"]["test"]
    return "none" if unseen == rows else "some" if unseen else "all"


def lookup_told(record: CompareRecord) -> bool:
    """Whether enough test rows are seen for the look-up part to be more than noise."""
    data = record["data"]
    return data["rows"]["test"] - data["unseen_test_rows"] >= ENOUGH_SEEN
