"""The names of attacks, and the kinds of trained ones. Importing this does not import torch."""

# The attacks that `create_attack` makes.
ATTACK_NAMES = ("pgd", "fgsm", "deepfool", "noise", "checkerboard", "uap", "uap-sign-sgd", "uap-sgd")
# The kinds of artifacts that `gap train` writes.
ARTIFACT_KINDS = ("bounded_generator", "direct_generator", "universal_perturbation")
