"""`python -m campaigns.accuracy`: the tables of accuracy, one training run to a cell.

A table (`tables/`) is a list of cells (`cell`), a cell is a run of `lowbit.train`, and its result is a line of
`docs/results/accuracy/TABLE.jsonl` (`results`), from which alone the tables are printed (`report`). A cell that has its
line is not run again; one that was interrupted goes on from its last checkpoint.

    python -m campaigns.accuracy --list                                    # every cell, and what is there of it
    python -m campaigns.accuracy --data CIFAR10_JPEG                       # run what is missing
    python -m campaigns.accuracy --data CIFAR10_JPEG --only 'init/*-w2a2-*'
    python -m campaigns.accuracy --data CIFAR10_JPEG --only NAME --again   # one cell anew, to compare; records nothing
    python -m campaigns.accuracy --data CIFAR10_JPEG --jobs 16 --minutes 9     # many at once on a GPU, steps replayed
    python -m campaigns.accuracy --report                                  # the tables, from the results

Every choice within a run is made on 5,000 of the training images. The test images are evaluated once a run.
"""
