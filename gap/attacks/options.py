"""Defaults that attacks and options share."""

# Past this margin, in logits, an image is as good as fooled: pushing it on would only spend what others need.
CONFIDENCE = 2.0
