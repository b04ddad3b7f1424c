"""The paper's maths: arrays in, arrays out."""
