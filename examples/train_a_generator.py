"""Shows how to train generators of perturbations, per image and universal, and how to keep and load them."""

import argparse

import torch

import gap

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--train-images", type=int, default=3500)
parser.add_argument("--test-images", type=int, default=1000)
arguments = parser.parse_args()

digits = gap.load_data("mnist-5k")
train = next(digits.train.batches([torch.arange(arguments.train_images)]))  # images in [0, 1] and labels
test = next(digits.test.batches([torch.arange(arguments.test_images)]))
model = gap.pretrain("mnist-cnn", train, epochs=arguments.epochs).classifier

generator = gap.train_generator(model, train, "l2:2.4", epochs=arguments.epochs)
universal = gap.train_generator(model, train, "l2:2.4", universal=True, epochs=arguments.epochs)
generator.save("runs/generator")

loaded = gap.load_attack("runs/generator")
images, labels = test
adversarial = loaded(model, images[:8], labels[:8])
print(f"L2 norms: {[round(norm, 2) for norm in gap.Budget.parse('l2:2.4').norm_of(adversarial - images[:8]).tolist()]}")

result = gap.evaluate([generator, universal, "pgd", "noise"], model, test, "l2:2.4")
print(result.to_markdown())
result.plot().save("generators.png")
