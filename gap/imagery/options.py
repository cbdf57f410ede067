"""Choices and default weights of drawing."""

from typing import Literal

# The weight of style beside content, both as shares of what they were in the pictures they come from.
STYLE_WEIGHT = 30.0
# That of the mean squared difference of neighboring pixels: enough to take the grain out that strides leave.
TV_WEIGHT = 10.0
# The weight of the style's colors beside that of its layers together.
COLOR_WEIGHT = 1.0
StyleLossName = Literal["gram", "moments", "sliced"]
Init = Literal["content", "noise"]
Pooling = Literal["max", "average"]
Padding = Literal["zeros", "reflect", "replicate"]
Strides = Literal["own", "smooth"]
