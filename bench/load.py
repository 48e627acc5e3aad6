"""load: seconds until a saved classifier is ready to predict, with a warm disk cache.

    python bench/load.py [--quick]

`LLMRung.load` of the adapter in bench/.cache/adapter, each time in a new process, after one that is
not counted. The seconds do not count imports (torch, transformers, peft); `seconds_imports` are
those from the start of the process to the end of imports, `seconds_from_start` both together. Less
than a minute on two cores.
"""

from driver import Contender, Measured, measure, spread
from record import surroundings, table, told, write
from work import adapter, plan_from


def main() -> None:
    plan = plan_from(__doc__)
    around = surroundings()
    job = {"folder": str(adapter(plan)), "changes": dict(plan.settings)}
    loading = Contender("llabel-load", "workers/load_ours.py", job, "LLMRung.load")
    measure([loading], repeats=1)
    laps = [measure([loading], repeats=1)[0] for _ in range(plan.repeats)]
    first = laps[0]
    ours = Measured(first.contender, first.command, first.facts, [one.laps[0] for one in laps])
    seconds = [lap["seconds"] for lap in ours.laps]
    result = {
        "name": "load",
        "what": "seconds of LLMRung.load, imports not counted",
        "unit": "s",
        "ours": told(ours)
        | {
            "seconds_imports": spread([lap["seconds_imports"] for lap in ours.laps]),
            "seconds_from_start": spread([lap["seconds_from_start"] for lap in ours.laps]),
        },
        "peer": None,
        "ratio": spread(seconds),
        "target": {"at_most": 2},
        "others": [],
    }
    write(plan.results, result, around)
    print(table(plan.results))


if __name__ == "__main__":
    main()
