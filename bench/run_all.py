"""Run every benchmark of the table, one after the other, and print the table.

    python bench/run_all.py [--quick] [--repeats N] [--set NAME=VALUE] [NAME ...]

NAME is a program's name, as train_vs_trl; without any, all are run. The switches are passed on to
the programs. A program that fails is named at the end, and the others run all the same. Nothing
else should run on the machine meanwhile; it takes some two hours on two cores, nearly all of it
for the peers' training. `make bench` makes bench/.venv and calls this.
"""

import subprocess
import sys
from pathlib import Path

from driver import BENCH
from record import table
from work import plan_from

PROGRAMS = (
    *("load", "share_of_peak", "predict_prefix_reuse", "train_prefix_reuse"),
    *("predict_vs_llamacpp", "predict_vs_generate", "train_vs_trl", "train_vs_sysone"),
    "train_vs_trl_same_allocator",
)


def main() -> None:
    names = [name for name in sys.argv[1:] if name in PROGRAMS]
    switches = [switch for switch in sys.argv[1:] if switch not in PROGRAMS]
    plan = plan_from(__doc__, switches)
    failed = []
    for name in names or PROGRAMS:
        print(f"\n== {name}", flush=True)
        command = [sys.executable, str(Path(BENCH) / f"{name}.py"), *switches]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print("\n" + table(plan.results))
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}; what went wrong stands above")


if __name__ == "__main__":
    main()
