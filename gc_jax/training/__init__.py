"""Training: the story of a run (`loop`), its `step`, its `guidance` terms."""
