"""A language model of a million parameters that comes with Threefold, for fast tests and for statistics over
many seeds.

`tokenizer` has a token for each character of an addition; `warm_start` trains a small Llama by supervision on
`envs.column_addition` until it solves short additions nearly always and long ones hardly ever: the state in
which reinforcement learning from outcomes finds most groups dead. A recipe names the two as
`model.name: tiny` and `data.train: tiny-arithmetic`.
"""
