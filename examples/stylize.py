"""Shows style transfer with a hardened network as the backbone, on your own images or on a sample photo."""

import argparse

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image

import gap

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--content", help="an image file; by default a photo that comes with matplotlib")
parser.add_argument("--style", help="an image file; by default colored waves")
parser.add_argument("--size", type=int, default=192, help="pixels of the longer side")
parser.add_argument("--evaluations", type=int, default=60)
arguments = parser.parse_args()

content = arguments.content or str(get_sample_data("grace_hopper.jpg", asfileobj=False))
rows, columns = np.mgrid[0:192, 0:192] / 192
waves = [0.5 + 0.5 * np.sin(2 * np.pi * (a * rows + b * columns)) for a, b in ((9, 4), (3, 12), (14, -7))]
style = arguments.style or Image.fromarray((255 * np.stack(waves, axis=2)).astype("uint8"))

drawing = gap.stylize(content, style, size=arguments.size, evaluations=arguments.evaluations)
drawing.save("stylized.png")
print(drawing.loss_summary)

texture = gap.texture(style, arguments.size, evaluations=arguments.evaluations)
texture.save("texture.png")
