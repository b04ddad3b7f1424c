"""Evaluation: of a model on a split, few questions or all.

`run` is read top to bottom: plan, measure, look, report. One file a question:
`classification`, `localisation`, `faithfulness`, `boxes`, `attacks`, `sanity`.
`programs` are what devices compute of a batch; numbers of all pairs lie in a
`ledger`, and `summary` makes results of them.
"""
