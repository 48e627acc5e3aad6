"""The run folder's README.md: a model card made from run.json alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import isclose
from typing import Any, cast

from llabel.confidence import Abstention, Answered, Calibration
from llabel.metrics import ReportRow, Scores, wilson_interval
from llabel.record import Baseline, FreeAnswers, JointRecord, RunRecord, target_records
from llabel.rung_settings import ADAPTED


def render_card(record: RunRecord | JointRecord) -> str:
    """Markdown with the front matter of the Hugging Face Hub."""
    data = record["data"]
    targets = target_records(record)
    counts = data["rows"]
    sections = [
        _front_matter(record),
        f"# {record['rung']} on {data['source']}",
        f"Answers {_answers(record, targets)} from the columns {', '.join(data['fields'])}. "
        f"{_made_of(record)}",
        *([] if targets else ["## Results"]),
        *_results(None if targets else cast(RunRecord, record), targets),
        "## Data",
        f"{counts['train']:,} training, {counts['validation']:,} validation and "
        f"{counts['test']:,} test rows; fingerprint `{data['fingerprint'][:16]}…`.\n"
        + "".join(f"\n- {note}" for note in data["notes"]),
        "## Use",
        "```bash\nllabel predict THIS_FOLDER NEW.csv -o answers.csv\n```",
        *_files(record),
        "## Limits",
        _limits(record, targets),
    ]
    if record["model_note"]:
        sections.append(f"About the base model: {record['model_note']}")
    sections.append(f"Made by\n\n```bash\n{record['command']}\n```")
    return "\n\n".join(sections) + "\n"


def _limits(record: RunRecord | JointRecord, targets: Mapping[str, RunRecord]) -> str:
    """What it does with texts that no label fits, and what is known of it."""
    one = next(iter(targets.values()), cast(RunRecord, record))
    if record["config"]["decode"] == "free":
        said = "It writes its answer freely, which may be no label (`unknown`)."
    elif one.get("abstention"):
        said = "It answers `abstain` where it is not sure, and else one of its labels"
        said += ", also to texts that none of them fits."
    else:
        said = "It answers one of its labels to any text, also to texts that none of them fits."
    if one["metrics"]["test"] is None:
        return f"{said} It was not tested (--untested)."
    return f"{said} It was tested on rows like those above and nothing else."


def _answers(record: RunRecord | JointRecord, targets: Mapping[str, RunRecord]) -> str:
    """What it says of a text: one label, or one of each target."""

    def one_of(classes: Sequence[Any]) -> str:
        more = ", …" if len(classes) > 20 else ""
        return f"one of {len(classes)} labels ({', '.join(map(str, classes[:20]))}{more})"

    each = [f"{name}, {one_of(own['data']['classes'])}," for name, own in targets.items()]
    return " and ".join(each) or one_of(record["data"]["classes"])


def _results(record: RunRecord | None, targets: Mapping[str, RunRecord]) -> Iterator[str]:
    """Scores and the classification report; of each of several targets under its own heading."""
    for name, own in targets.items():
        yield f"## Results: {name}"
        yield from _results(own, {})
    if record is None:
        return
    rows = [
        _row(f"**{name}**" if scores is record["metrics"]["test"] else name, scores)
        for name, scores in scored_parts(record)
    ]
    rows += [_baseline(name, baseline) for name, baseline in record["baselines"].items()]
    yield (
        "| rows | n | accuracy (95 % interval) | macro-F1 | log loss | ECE |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(rows)
    )
    yield " ".join([intervals_told(record), *told(record)])
    yield from _classes(record)


def _front_matter(record: RunRecord | JointRecord) -> str:
    lines = ["---"]
    if base := _base(record):
        lines.append(f"base_model: {json.dumps(base)}")  # a path may hold what YAML obeys
    if record["rung"] in ADAPTED:
        lines += ["library_name: peft", "tags: [text-classification, lora, llabel]"]
    else:
        lines.append("tags: [text-classification, llabel]")
    return "\n".join([*lines, "---"])


def _base(record: RunRecord | JointRecord) -> str | None:
    """The pre-trained weights that the rung starts from."""
    name = {"encoder": "encoder", "word-embeddings": "embeddings", "rnn": "embeddings"}
    if record["rung"].startswith("llm-"):
        return str(record["config"]["model"])
    return record["config"].get(name.get(record["rung"], ""))


def _made_of(record: RunRecord | JointRecord) -> str:
    config, training = record["config"], record["training"]
    said = [f"Base: `{base}`"] if (base := _base(record)) else []
    if record["rung"] in ADAPTED:
        rounded = config.get("base", "auto") != "auto"
        said.append(
            f"{'QLoRA (base in 4-bit NF4)' if rounded else 'LoRA'} r {config['r']}, "
            f"alpha {config['lora_alpha']:g}"
        )
    if training["epochs"]:
        said.append(f"{training['epochs']:g} epoch(s)")
    if training["refit"]:
        said.append("trained anew on train + validation")
    return ", ".join([f"Rung: {record['rung']}", *said]) + "."


def _files(record: RunRecord | JointRecord) -> Iterator[str]:
    if record["rung"] in ADAPTED:
        yield (
            "The adapter in `adapter/` is in PEFT's own format. The prompt it was trained with and "
            "the words of each label stand in `rung.json`."
        )


def scored_parts(record: RunRecord) -> Iterator[tuple[str, Scores]]:
    """The rows that a run was scored on, and what tables call them."""
    metrics = record["metrics"]
    if metrics["train"]:
        sampled = metrics["train"]["rows"] < record["data"]["rows"]["train"]
        yield "train (sample)" if sampled else "train", metrics["train"]
    yield "validation", metrics["validation"]
    if metrics["test"]:
        free = record["config"]["decode"] == "free"
        yield "test, free answers" if free else "test", metrics["test"]
        if found := record.get("free_answers"):
            yield "test, most probable label", found["constrained"]
    if metrics["test_unseen"]:
        yield "test, unseen texts", metrics["test_unseen"]


def over_groups(record: RunRecord) -> str | None:
    """The column whose groups the intervals are over, or None.

    Those of runs made by earlier versions, and of parts that are of one group, are over rows.
    """
    group = record["config"].get("group")
    return group if any(not _of_rows(scores) for _, scores in scored_parts(record)) else None


def _of_rows(scores: Scores) -> bool:
    rows = scores["rows"]
    of_rows = wilson_interval(round(scores["accuracy"] * rows), rows)
    return all(map(isclose, scores["accuracy_ci95"], of_rows))


def intervals_told(record: RunRecord) -> str:
    """Which intervals the scores have."""
    group = over_groups(record)
    if group is None:
        return "Intervals are Wilson's; they cover the sampling of test rows, not that of seeds."
    return (
        "Intervals of accuracy are Wilson's at the effective number of rows, as rows that share "
        f"their {group} are not independent; they cover the sampling of such groups, not that of "
        "seeds. Those by class are over rows."
    )


def baseline_name(name: str, baseline: Baseline) -> str:
    """What tables call a reference without a model."""
    return f"look-up of {baseline['column']} (test)" if baseline["column"] else f"{name} (test)"


def told(record: RunRecord) -> Iterator[str]:
    """What there is to say of answers that are free, calibrated or withheld, in sentences."""
    if record["config"]["decode"] == "free" and record["metrics"]["test"]:
        yield free_answers(record)
    if calibration := record.get("calibration"):
        yield calibrated(calibration)
    if abstention := record.get("abstention"):
        yield abstained(abstention, over_groups(record))


def free_answers(record: RunRecord) -> str:
    """How many answers on the test rows were no label, and what the constrained ones are worth."""
    rows = record["data"]["rows"]["test"]
    unknown = sum(row["predicted"] for row in record["report"] if row["kind"] == "unknown")
    said = (
        f"On the test rows the model wrote its answers freely: {unknown:,} of {rows:,} are no "
        "label (`unknown`) and count as wrong; log loss and ECE judge the labels' probabilities."
    )
    free = record.get("free_answers")
    return f"{said} {knowledge(free)}" if free else said


def knowledge(free: FreeAnswers) -> str:
    """Knows the answer, formats the answer: apart."""
    constrained, of_labels = free["constrained"]["accuracy"], free["accuracy_of_labels"]
    low, high = free["unknown_ci95"]
    said = (
        f"It knows the answer: accuracy {constrained:.4f} by the most probable label. It keeps the "
        f"form: {1 - free['unknown_share']:.1%} of its answers are labels (no label: "
        f"{free['unknown_share']:.1%}, 95 % interval {low:.1%} to {high:.1%})"
    )
    return said + ("." if of_labels is None else f"; of these {of_labels:.4f} are right.")


def calibrated(calibration: Calibration) -> str:
    """The temperature and what it did."""
    temperature = calibration["temperature"]
    if temperature == 1:
        return "Calibration: no temperature is better on validation, probabilities are unchanged."
    part = "validation" if calibration["test"] is None else "test"
    change = calibration["test"] or calibration["validation"]
    before, after = change["before"], change["after"]
    return (
        f"Probabilities are calibrated with temperature {temperature:.3g}, chosen on validation: "
        f"{part} log loss {before['log_loss']:.4f} → {after['log_loss']:.4f}, "
        f"ECE {before['ece']:.4f} → {after['ece']:.4f}."
    )


def abstained(abstention: Abstention, group: str | None = None) -> str:
    """What is answered, and how well; `group`: the column whose groups the intervals are over."""
    target = abstention["target_precision"]
    part = "validation" if abstention["test"] is None else "test"
    said = (
        f"`abstain` is answered where no label has probability {abstention['threshold']:.4f}. "
        + answered_told(abstention["test"] or abstention["validation"], part)
    )
    if abstention["attained"] is False:
        said += (
            f" The target was missed: no threshold shows precision {target:g} on "
            f"{abstention['validation']['rows']:,} validation rows; this one comes nearest."
        )
        if group is not None:
            said += f" Rows that share their {group} count as one there."
    elif target is not None:
        said += f" It is the smallest threshold that shows precision {target:g} on validation."
    return said


def answered_told(answered: Answered, part: str) -> str:
    """Coverage and accuracy of the rows that get an answer."""
    said = (
        f"Of {answered['rows']:,} {part} rows {answered['answered']:,} "
        f"({answered['coverage']:.1%}) are answered"
    )
    if answered["accuracy"] is None or answered["accuracy_ci95"] is None:
        return f"{said}."
    low, high = answered["accuracy_ci95"]
    return (
        f"{said}, with accuracy {answered['accuracy']:.4f} (95 % interval {low:.4f}–{high:.4f}); "
        "the table's scores are of all rows."
    )


def _classes(record: RunRecord) -> Iterator[str]:
    """The classification report of the test rows."""
    if not record["report"]:
        return
    yield (
        "### By class\n\n| class | precision | recall | F1 | rows | answered |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(map(_class_row, record["report"]))
    )


def _class_row(row: ReportRow) -> str:
    name = _cell(row["name"])
    cells = (
        name if row["kind"] == "class" else f"*{name}*",
        _measure(row["precision"], row.get("precision_ci95")),
        _measure(row["recall"], row.get("recall_ci95")),
        *(f"{row['f1']:.4f}", f"{row['support']:,}", f"{row['predicted']:,}"),
    )
    return f"| {' | '.join(cells)} |"


def _measure(value: float | None, interval: list[float] | None) -> str:
    bounds = f" ({interval[0]:.4f}–{interval[1]:.4f})" if interval else ""
    return "" if value is None else f"{value:.4f}{bounds}"


def _row(name: str, scores: Scores) -> str:
    low, high = scores["accuracy_ci95"]
    return (
        f"| {name} | {scores['rows']:,} | {scores['accuracy']:.4f} ({low:.4f}–{high:.4f}) | "
        f"{scores['macro_f1']:.4f} | {scores['log_loss']:.4f} | {scores['ece']:.4f} |"
    )


def _baseline(name: str, baseline: Baseline) -> str:
    low, high = baseline["accuracy_ci95"]
    accuracy = f"{baseline['accuracy']:.4f} ({low:.4f}–{high:.4f})"
    return f"| {_cell(baseline_name(name, baseline))} | | {accuracy} | | | |"


def _cell(name: str) -> str:
    """A name from the data, in a table of Markdown."""
    return name.replace("|", "\\|").replace("\n", " ")
