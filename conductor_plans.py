"""Plans as tasks of verifiers, under a name that it finds: ``eval conductor-plans``."""

from training.verifiers_tasks import Plans

__all__ = ["Plans"]
