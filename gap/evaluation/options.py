"""Defaults that evaluations and options share."""

# Steps of gradient ascent in each layer.
STEPS = 20
