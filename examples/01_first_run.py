"""A first run: one query, no keys, no configuration.

A small model that comes with the package writes a plan, its players carry it out, and the run
tells who did what. The first time, the model is fetched and converted (about two minutes).

    python examples/01_first_run.py
"""

from conductor import Conductor, embedded_pool


def main() -> None:
    conductor = Conductor(embedded_pool(progress=lambda stage: print(f"({stage})")))
    run = conductor.run("Why do leaves change colour in autumn?")

    print(f"\nThe plan, written by {run.planning[-1].worker}:\n\n{run.plan}")
    for step in run.steps:
        tokens = step.usage.output_tokens if step.usage else 0
        print(f"step {step.index}: {step.worker}, {step.seconds:.1f} s, {tokens} tokens")
    print(f"\nThe answer:\n\n{run.answer}")


if __name__ == "__main__":
    main()
