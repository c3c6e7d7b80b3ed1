"""Pictures of a plan, and of a run coloured by what became of each step: SVG, PNG, Mermaid, DOT.

python examples/06_render_topologies.py [FOLDER]
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from conductor import (
    Conductor,
    FunctionWorker,
    Message,
    Pool,
    debate,
    marks,
    to_dot,
    to_mermaid,
    to_png,
    to_svg,
)


async def agree(messages: Sequence[Message]) -> str:
    return "I agree."


async def leave(messages: Sequence[Message]) -> str:
    raise RuntimeError("left the room")


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="topologies-"))
    folder.mkdir(parents=True, exist_ok=True)
    plan = debate(["ann", "bob"], "judge", rounds=2)
    workers = {"ann": agree, "bob": leave, "judge": agree}
    pool = Pool([FunctionWorker(name, function) for name, function in workers.items()])
    run = Conductor(pool).run("Shall we stay?", plan=plan)

    for name, states in (("plan", {}), ("run", marks(run))):
        (folder / f"{name}.svg").write_text(to_svg(plan, marks=states), encoding="utf-8")
        (folder / f"{name}.png").write_bytes(to_png(plan, marks=states))
        (folder / f"{name}.mmd").write_text(to_mermaid(plan, marks=states), encoding="utf-8")
        (folder / f"{name}.dot").write_text(to_dot(plan, marks=states), encoding="utf-8")
    for file in sorted(folder.iterdir()):
        print(f"{file}  {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
