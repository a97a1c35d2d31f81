"""What a model can do, in numbers with intervals: pass@k, avg@k, bootstrap over problems, paired comparison.

`pass_at_k` and `intervals` are plain numpy on arrays; `evaluate` runs a sampler over problems and counts. The
unit of chance is the problem: samples of one problem are not independent, so intervals resample problems,
never samples.
"""
