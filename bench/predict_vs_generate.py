"""predict-vs-generate: rows/s of prediction beside transformers' `generate(max_new_tokens=1)`.

    python bench/predict_vs_generate.py [--quick]

A LoRA adapter on SmolLM2-135M (a few steps of our own training, kept in bench/.cache/adapter), 208
validation rows of BoolQ of at most 256 tokens a lap, the same each lap. The peer has the adapter
merged, float32, rows sorted by length, left padding and its fastest batch size of 8, 16 and 32.
About ten minutes on two cores.
"""

from driver import Contender, measure_pairs
from record import compared, surroundings, table, write
from work import adapter, model_folder, ours_predicting, plan_from, write_rows


def main() -> None:
    plan = plan_from(__doc__)
    around = surroundings()
    path, _ = write_rows("predict", "validation", plan.rows)
    job = {
        "rows": str(path),
        "model": model_folder(),
        "adapter": str(adapter(plan) / "adapter"),
    }
    generate = Contender(
        "transformers-generate", "workers/predict_generate.py", job,
        "generate(max_new_tokens=1), merged adapter, float32",
    )  # fmt: skip
    pairs = measure_pairs(ours_predicting(plan, path), [generate], plan.repeats)
    name, what = "predict-vs-generate", "rows/s, llabel / transformers' generate"
    write(plan.results, compared(name, what, pairs, {"at_least": 5}), around)
    print(table(plan.results))


if __name__ == "__main__":
    main()
