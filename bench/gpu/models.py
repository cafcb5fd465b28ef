"""The networks of the loads, in plain torch.nn, with random weights.

Written out here because the shapes of the kernels are what matters, and a benchmark should not need
a package of models. Only PyTorch is imported; only tenant.py uses this.
"""

import torch
from torch import nn

_VGG = {
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M",
              512, 512, 512, "M"),
    "vgg19": (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M",
              512, 512, 512, 512, "M"),
}


def _vgg(plan):
    layers, channels = [], 3
    for entry in plan:
        if entry == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.ReLU(inplace=True)]
            channels = entry
    return nn.Sequential(
        *layers, nn.Flatten(),
        nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Linear(4096, 1000))


def _conv_norm(inputs, outputs, size, stride=1):
    return (nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(outputs))


class _Residual(nn.Module):
    """A block of a ResNet: basic (3x3, 3x3) or bottleneck (1x1, 3x3, 1x1 of 4 times the width)."""

    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        outputs = width * (4 if bottleneck else 1)
        if bottleneck:
            self.body = nn.Sequential(
                *_conv_norm(inputs, width, 1), nn.ReLU(inplace=True),
                *_conv_norm(width, width, 3, stride), nn.ReLU(inplace=True),
                *_conv_norm(width, outputs, 1))
        else:
            self.body = nn.Sequential(
                *_conv_norm(inputs, width, 3, stride), nn.ReLU(inplace=True),
                *_conv_norm(width, outputs, 3))
        self.skip = None
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(*_conv_norm(inputs, outputs, 1, stride))

    def forward(self, x):
        return torch.relu_(self.body(x) + (x if self.skip is None else self.skip(x)))


class _GlobalMean(nn.Module):

    def forward(self, x):
        return x.mean((2, 3))


def _resnet(depths, bottleneck):
    layers = [*_conv_norm(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(_Residual(inputs, width, stride, bottleneck))
            inputs = width * (4 if bottleneck else 1)
    return nn.Sequential(*layers, _GlobalMean(), nn.Linear(inputs, 1000))


class _DenseLayer(nn.Module):

    def __init__(self, inputs, growth):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(inplace=False),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(inplace=True),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False))

    def forward(self, x):
        return torch.cat((x, self.body(x)), 1)


def _densenet121():
    growth, channels = 32, 64
    layers = [*_conv_norm(3, channels, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate((6, 12, 24, 16)):
        for _ in range(depth):
            layers.append(_DenseLayer(channels, growth))
            channels += growth
        if stage < 3:
            layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
                       nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2, 2)]
            channels //= 2
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), _GlobalMean(),
                         nn.Linear(channels, 1000))


_BUILDERS = {
    "vgg16": lambda: _vgg(_VGG["vgg16"]),
    "vgg19": lambda: _vgg(_VGG["vgg19"]),
    "resnet18": lambda: _resnet((2, 2, 2, 2), bottleneck=False),
    "resnet50": lambda: _resnet((3, 4, 6, 3), bottleneck=True),
    "resnet101": lambda: _resnet((3, 4, 23, 3), bottleneck=True),
    "resnet152": lambda: _resnet((3, 8, 36, 3), bottleneck=True),
    "densenet121": _densenet121,
}
NAMES = tuple(_BUILDERS)


def build(name, device="cuda", seed=1):
    """The model on `device`, its weights a function of `seed` alone, in evaluation mode."""
    if name not in _BUILDERS:
        raise ValueError("unknown model %s: choose from %s" % (name, ", ".join(NAMES)))
    torch.manual_seed(seed)
    with torch.device(device):
        model = _BUILDERS[name]()
        for module in model.modules():
            # Activations must neither vanish nor overflow: their size decides the power drawn.
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
    return model.eval()
