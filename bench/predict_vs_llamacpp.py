"""predict-vs-llamacpp: rows/s of prediction beside llama.cpp on the same GGUF file.

    python bench/predict_vs_llamacpp.py [--quick]

SmolLM2-135M as it is, no adapter on either side: llabel's zero-shot rung on the weights that it
unpacked from the file, llama.cpp on the file (Q4_1). 208 validation rows of BoolQ of at most 256
tokens a lap, the same each lap; label log-probabilities at the answer position. About five minutes
on two cores.
"""

from dataclasses import replace
from pathlib import Path

from driver import Contender, measure_pairs
from record import compared, surroundings, table, write
from work import MAX_LENGTH, MODEL, plan_from, write_rows


def gguf() -> Path:
    """The built-in model's GGUF file, which llabel itself converts and then throws away."""
    from llabel.assets import BUILT_IN, fetch

    def keep(members: Path, out: Path) -> None:
        for path in members.iterdir():
            path.rename(out / path.name)

    folder = fetch(replace(BUILT_IN[MODEL], name=f"{MODEL}-gguf", build=keep))
    (file,) = folder.glob("*.gguf")
    return file


def main() -> None:
    plan = plan_from(__doc__)
    around = surroundings()
    path, _ = write_rows("predict", "validation", plan.rows)
    settings = {"model": MODEL, "max_seq_length": MAX_LENGTH} | dict(plan.settings)
    ours = Contender(
        "llabel", "workers/predict_ours.py",
        {"rows": str(path), "settings": settings, "classes": [False, True]},
        "PromptedRung.predict_proba, zero-shot",
    )  # fmt: skip
    llamacpp = Contender(
        "llama.cpp", "workers/predict_llamacpp.py",
        {"rows": str(path), "gguf": str(gguf())},
        "llama-cpp-python, eval of each prompt, logits of the last token",
    )  # fmt: skip
    pairs = measure_pairs(ours, [llamacpp], plan.repeats)
    name, what = "predict-vs-llamacpp", "rows/s, llabel / llama.cpp"
    write(plan.results, compared(name, what, pairs, {"at_least": 1.5}), around)
    print(table(plan.results))


if __name__ == "__main__":
    main()
