"""What people look at: metrics, progress, overlays, tables, the HTML page.

Reads and writes the files of a run's workdir and of an evaluation's folder;
imports no model and no jax.
"""
