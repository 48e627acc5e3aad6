"""The run folder's README.md: a model card made from run.json alone."""

from collections.abc import Iterator

from llabel.metrics import Scores
from llabel.record import Baseline, RunRecord
from llabel.settings import ADAPTED


def render_card(record: RunRecord) -> str:
    """Markdown with the front matter of the Hugging Face Hub."""
    data = record["data"]
    rows = [
        _row(f"**{name}**" if scores is record["metrics"]["test"] else name, scores)
        for name, scores in scored_parts(record)
    ]
    rows += [_baseline(name, baseline) for name, baseline in record["baselines"].items()]
    counts = data["rows"]
    sections = [
        _front_matter(record),
        f"# {record['rung']} on {data['source']}",
        f"Answers one of {len(data['classes'])} labels "
        f"({', '.join(map(str, data['classes'][:20]))}"
        f"{', …' if len(data['classes']) > 20 else ''}) from the "
        f"columns {', '.join(data['fields'])}. {_made_of(record)}",
        "## Results",
        "| rows | n | accuracy (95 % interval) | macro-F1 | log loss | ECE |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(rows),
        "Intervals are Wilson's; they cover the sampling of test rows, not that of seeds."
        + (f" {told}" if (told := free_answers(record)) else ""),
        "## Data",
        f"{counts['train']:,} training, {counts['validation']:,} validation and "
        f"{counts['test']:,} test rows; fingerprint `{data['fingerprint'][:16]}…`.\n"
        + "".join(f"\n- {note}" for note in data["notes"]),
        "## Use",
        "```bash\nllabel predict THIS_FOLDER NEW.csv -o answers.csv\n```",
        *_files(record),
        "## Limits",
        "It answers one of its labels to any text, also to texts that none of them fits. It was "
        "tested on rows like those above and nothing else.",
    ]
    if record["model_note"]:
        sections.append(f"About the base model: {record['model_note']}")
    sections.append(f"Made by\n\n```bash\n{record['command']}\n```")
    return "\n\n".join(sections) + "\n"


def _front_matter(record: RunRecord) -> str:
    lines = ["---"]
    if base := _base(record):
        lines.append(f"base_model: {base}")
    if record["rung"] in ADAPTED:
        lines += ["library_name: peft", "tags: [text-classification, lora, llabel]"]
    else:
        lines.append("tags: [text-classification, llabel]")
    return "\n".join([*lines, "---"])


def _base(record: RunRecord) -> str | None:
    """The pre-trained weights that the rung starts from."""
    name = {"encoder": "encoder", "word-embeddings": "embeddings", "rnn": "embeddings"}
    if record["rung"].startswith("llm-"):
        return str(record["config"]["model"])
    return record["config"].get(name.get(record["rung"], ""))


def _made_of(record: RunRecord) -> str:
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


def _files(record: RunRecord) -> Iterator[str]:
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
    if metrics["test_unseen"]:
        yield "test, unseen texts", metrics["test_unseen"]


def baseline_name(name: str, baseline: Baseline) -> str:
    """What tables call a reference without a model."""
    return f"look-up of {baseline['column']} (test)" if baseline["column"] else f"{name} (test)"


def free_answers(record: RunRecord) -> str:
    """How many answers on the test rows were no label, in a sentence; "" where none was written."""
    test = record["metrics"]["test"]
    if record["config"]["decode"] != "free" or test is None:
        return ""
    rows = test["rows"]
    unknown = sum(row["predicted"] for row in record["report"] if row["kind"] == "unknown")
    return (
        f"On the test rows the model wrote its answers freely: {unknown:,} of {rows:,} are no "
        "label (`unknown`) and count as wrong; log loss and ECE judge the labels' probabilities."
    )


def _row(name: str, scores: Scores) -> str:
    low, high = scores["accuracy_ci95"]
    return (
        f"| {name} | {scores['rows']:,} | {scores['accuracy']:.4f} ({low:.4f}–{high:.4f}) | "
        f"{scores['macro_f1']:.4f} | {scores['log_loss']:.4f} | {scores['ece']:.4f} |"
    )


def _baseline(name: str, baseline: Baseline) -> str:
    low, high = baseline["accuracy_ci95"]
    accuracy = f"{baseline['accuracy']:.4f} ({low:.4f}–{high:.4f})"
    return f"| {baseline_name(name, baseline)} | | {accuracy} | | | |"
