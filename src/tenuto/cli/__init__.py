"""The command ``tenuto``. Heavy imports wait inside the commands, so that ``--help`` is quick."""

from tenuto.cli import attention, bench, catalogue, demo, fit, models, run, store, train
from tenuto.cli.group import main

__all__ = ["attention", "bench", "catalogue", "demo", "fit", "main", "models", "run", "store", "train"]
