"""Configs that can't be trained, one after the other in one job: `torchrun bad_input_job.py FOLDER`, in it `configs.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from lowbit.errors import LowbitError
from lowbit.processes import end, says
from lowbit.train import TrainConfig, run

torch.set_num_threads(1)
folder = Path(sys.argv[1])
answers = {}
for name, (resume, *configs) in json.loads((folder / "configs.json").read_text()).items():
    # Where there is a config for each process, they differ in what they are to be told.
    number = dist.get_rank() if dist.is_initialized() else 0
    try:
        run(TrainConfig.from_dict(configs[number % len(configs)]), resume=resume)
    except LowbitError as error:
        answers[name] = [str(error), error.everywhere, says(error)]
(folder / f"answers-{dist.get_rank()}.json").write_text(json.dumps(answers))
end(0)
