"""The names of builtin classifiers, with a description of one line. Importing this does not import torch."""

BUILTIN_DESCRIPTIONS = {
    "mnist-cnn": "two convolutions and 512 hidden units, 28x28x1",
    "cifar-resnet18": "ResNet-18 with a stem for small pictures, 32x32x3",
    "cifar-resnet18-narrow": "the same at a quarter of the width, for CPUs",
    "drawing-standard": "cifar-resnet18-narrow, trained on CIFAR-10 (JPEG), weights included",
    "drawing-hardened": "the same, hardened within l2:0.75: the backbone that the drawing verbs take",
    "efficientnet-lite0": "EfficientNet-Lite0 with ImageNet-1k weights, from the extra [imagenet]",
}
