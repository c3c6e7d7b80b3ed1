"""Write a journal as this version does, for later versions to read: ``journal-N.db``.

    python -m tests.data.write tests/data/journal-1.db

One for each format of the file, written once by the version that brought it, and kept for good.
Every scene is in it once whole and, after these, once cut short in its middle.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path

import anyio

from runtime import Journal, no_listener
from tests.crash.scenes import SCENES, team_of
from tests.test_journal import Ants, Killed, dies_after


async def write(path: Path) -> None:
    """Play the scenes, then take out what tells of this machine."""
    with Journal(path) as journal:
        counts = []
        for scene in SCENES:
            run = await scene.play(team_of(Ants().make, journal), 1, no_listener)
            counts.append(len(journal.events(run.id)))
        for scene, count in zip(SCENES, counts, strict=True):
            with suppress(Killed):
                await scene.play(team_of(Ants().make, journal), 1, dies_after(count // 2))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE run SET host = 'example', process = 1")
        connection.execute("VACUUM")


if __name__ == "__main__":
    anyio.run(write, Path(sys.argv[1]))
