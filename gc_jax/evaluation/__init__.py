"""Evaluation of a model on a split, with few questions or all.

`run` is read top to bottom: plan, measure, look, report. Each question has a
file with its maths and its program: `classification`, `localisation`,
`faithfulness`, `attacks`; `examples` has the pictures and the sanity check. A
`ledger` holds the numbers of all pairs, and `summary` makes results of them.
"""
