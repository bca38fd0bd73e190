"""`lowbit` called several times in one job: `torchrun commands_job.py FILE`, in it a list of [where to stop or null, arguments].

A job takes seconds to start, and most of them to import torch, so that several commands share one. The first process prints
"### exit status" after each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import lowbit.report
import lowbit.train
from lowbit.cli.main import main
from lowbit.processes import end, rank

torch.set_num_threads(1)
lowbit.report.plot_run = lambda folder: None  # takes longer than what is trained here
train = lowbit.train.run
for stop, arguments in json.loads(Path(sys.argv[1]).read_text()):

    def on_step(trainer: object, epochs_done: float, stop: float | None = stop) -> None:
        if stop is not None and epochs_done >= stop:
            raise KeyboardInterrupt

    lowbit.train.run = lambda config, on_step=on_step, **options: train(config, on_step=on_step, **options)
    status = main(arguments)
    if rank() == 0:
        print(f"### {status}", flush=True)
end(0)
