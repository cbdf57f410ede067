"""Shows what a hardened classifier responds to: its classes, a few channels, and images that move towards a class."""

import argparse

import torch

import gap

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--steps", type=int, default=60, help="steps of each drawing")
parser.add_argument("--train-images", type=int, default=3500)
arguments = parser.parse_args()

digits = gap.load_data("mnist-5k")
train = next(digits.train.batches([torch.arange(arguments.train_images)]))  # images in [0, 1] and labels
standard = gap.pretrain("mnist-cnn", train, epochs=arguments.epochs)
hardened = gap.harden(standard.classifier, train, "l2:1.2", epochs=arguments.epochs)  # L2 draws better than Linf here
model = hardened.classifier

layer = next(name for name, module in model.network.named_modules() if isinstance(module, torch.nn.Conv2d))
sheet = gap.visualize(model, ["logit:0-9", f"{layer}:0-3"], steps=arguments.steps)
sheet.save("sheet.png")
print(f"sheet.png: {', '.join(sheet.captions)}")

images, labels = next(digits.test.batches([torch.arange(4)]))
walk = gap.traverse(model, images, target=3, steps=arguments.steps)
walk.save("walk.mp4")
print(f"probability of class 3: {walk.probabilities[0, :, 3].mean():.1%} -> {walk.probabilities[-1, :, 3].mean():.1%}")
