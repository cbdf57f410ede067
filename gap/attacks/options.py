"""Defaults that attacks and options share."""

# An image misclassified by this margin, in logits, counts as fooled. The loss does not increase the margin further.
CONFIDENCE = 2.0
