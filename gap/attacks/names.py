"""The names of attacks, and the kinds of trained ones. Importing this does not import torch."""

# Those that `create_attack` knows.
ATTACK_NAMES = ("pgd", "fgsm", "deepfool", "noise", "checkerboard", "uap", "uap-sign-sgd", "uap-sgd")
# What `gap train` leaves.
ARTIFACT_KINDS = ("bounded_generator", "direct_generator", "universal_perturbation")
