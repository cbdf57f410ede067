"""Shows how to attack a network of your own, trained by a loop of your own: PGD, FGSM and noise, in one table."""

import argparse

import torch
from torch import nn

import gap

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--train-images", type=int, default=3500)
parser.add_argument("--test-images", type=int, default=1000)
arguments = parser.parse_args()

digits = gap.load_data("mnist-5k")
train_images, train_labels = next(digits.train.batches([torch.arange(arguments.train_images)]))
images, labels = next(digits.test.batches([torch.arange(arguments.test_images)]))  # N x 1 x 28 x 28 in [0, 1]

model = nn.Sequential(
    *(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(512, 10)),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(arguments.epochs):
    for batch in torch.randperm(len(train_images)).split(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
        optimizer.step()

# The textbook form: constant steps on the cross-entropy, and the last iterate.
attack = gap.attacks.PGD(
    "linf:0.1", steps=20, loss="cross-entropy", step_size=0.02, step_schedule="constant", early_stop=False
)
adversarial = attack(model, images, labels)
print(f"accuracy under PGD: {(model(adversarial).argmax(dim=1) == labels).double().mean():.1%}")

result = gap.evaluate([attack, "pgd", "fgsm", "noise"], model, (images, labels), "linf:0.1")
print(result)
result.to_csv("attacks.csv")
result.pictures().save("attacks.png")
