"""The names of attacks and of their losses, and the kinds of trained attacks. Importing this does not import torch."""

# The attacks that `create_attack` makes.
ATTACK_NAMES = ("pgd", "fgsm", "deepfool", "noise", "checkerboard", "uap", "uap-sign-sgd", "uap-sgd")
# The adversarial losses: the keys of `gap.attacks.losses.LOSSES`.
LOSS_NAMES = ("margin", "cross-entropy", "capped-cross-entropy", "log-cross-entropy", "relativistic")
# The kinds of artifacts that `gap train` writes.
ARTIFACT_KINDS = ("bounded_generator", "direct_generator", "universal_perturbation")
