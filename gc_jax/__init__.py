"""Image classifiers whose explanations can be trusted, trained in JAX."""
