"""Write a plan by hand, as a file, and carry it out.

A plan is three lists of the same length: what each step does, who does it, and which earlier
steps it reads. Mistakes are told with line, column and what would be right.

    python examples/02_write_a_plan_file.py
"""

import tempfile
from pathlib import Path

from conductor import Conductor, PlanError, embedded_pool, parse_file, topology

PLAN = """\
# two views, then one answer
subtasks = ["Say what speaks for it.", "Say what speaks against it.", "Give short advice."]
workers  = [0, 0, 0]  # the first of the pool
access   = [[], [], [0, 1]]
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "advice.plan")
        file.write_text(PLAN, encoding="utf-8")
        plan = parse_file(file.read_text(encoding="utf-8"))
    print(f"{len(plan)} steps, a {topology(plan)}\n")

    try:
        parse_file(PLAN.replace("[0, 1]", "[0, 2]"))
    except PlanError as error:
        print(f"A step that reads itself:\n\n{error.render('advice.plan')}\n")

    run = Conductor(embedded_pool()).run("Should I learn to juggle?", plan=plan)
    for step in run.steps:
        print(f"--- step {step.index}, {step.worker}\n{step.text}\n")


if __name__ == "__main__":
    main()
