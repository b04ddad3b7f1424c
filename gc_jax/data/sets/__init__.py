"""Data sets, one each, and what reads their files."""
