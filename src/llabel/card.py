"""The run folder's README.md: a model card made from run.json alone."""

from llabel.metrics import Scores
from llabel.record import Baseline, RunRecord


def render_card(record: RunRecord) -> str:
    """Markdown with the front matter of the Hugging Face Hub."""
    config, data, metrics = record["config"], record["data"], record["metrics"]
    rows = [
        _row("train (sample)", metrics["train"]),
        _row("validation", metrics["validation"]),
        _row("**test**", metrics["test"]),
    ]
    if metrics["test_unseen"]:
        rows.append(_row("test, unseen texts", metrics["test_unseen"]))
    rows += [_baseline(name, baseline) for name, baseline in record["baselines"].items()]
    counts = data["rows"]
    sections = [
        f"---\nlibrary_name: peft\nbase_model: {config['model']}\ntags: [text-classification, "
        "lora, llabel]\n---",
        f"# {record['rung']} on {data['source']}",
        f"Answers one of {len(data['classes'])} labels "
        f"({', '.join(map(str, data['classes'][:20]))}"
        f"{', …' if len(data['classes']) > 20 else ''}) from the "
        f"columns {', '.join(data['fields'])}. Base model: `{config['model']}`, LoRA r "
        f"{config['r']}, alpha {config['lora_alpha']:g}, {record['training']['epochs']} epoch(s)"
        f"{', trained anew on train + validation' if record['training']['refit'] else ''}.",
        "## Results",
        "| rows | n | accuracy (95 % interval) | macro-F1 | log loss | ECE |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(rows),
        "Intervals are Wilson's; they cover the sampling of test rows, not that of seeds.",
        "## Data",
        f"{counts['train']:,} training, {counts['validation']:,} validation and "
        f"{counts['test']:,} test rows; fingerprint `{data['fingerprint'][:16]}…`.\n"
        + "".join(f"\n- {note}" for note in data["notes"]),
        "## Use",
        "```bash\nllabel predict THIS_FOLDER NEW.csv -o answers.csv\n```",
        "The adapter in `adapter/` is in PEFT's own format. The prompt it was trained with and "
        "the words of each label stand in `rung.json`.",
        "## Limits",
        "It answers one of its labels to any text, also to texts that none of them fits. It was "
        "tested on rows like those above and nothing else.",
    ]
    if record["model_note"]:
        sections.append(f"About the base model: {record['model_note']}")
    sections.append(f"Made by\n\n```bash\n{record['command']}\n```")
    return "\n\n".join(sections) + "\n"


def _row(name: str, scores: Scores) -> str:
    low, high = scores["accuracy_ci95"]
    return (
        f"| {name} | {scores['rows']:,} | {scores['accuracy']:.4f} ({low:.4f}–{high:.4f}) | "
        f"{scores['macro_f1']:.4f} | {scores['log_loss']:.4f} | {scores['ece']:.4f} |"
    )


def _baseline(name: str, baseline: Baseline) -> str:
    low, high = baseline["accuracy_ci95"]
    shown = f"look-up of `{baseline['column']}`" if baseline["column"] else f"{name} class"
    return f"| {shown} (test) | | {baseline['accuracy']:.4f} ({low:.4f}–{high:.4f}) | | | |"
