"""Training: guidance terms so far; the step and the story move in beside."""
