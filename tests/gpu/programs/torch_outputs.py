"""Outputs of an ordinary PyTorch program, as checksums: eager inference, training steps, matrix
products on side streams, copies, a captured graph. Waits for the end of stdin after its result.
"""

import hashlib
import json
import sys

import torch
from torch import nn


def digest(*tensors):
    total = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        total.update(tensor.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return total.hexdigest()


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(64, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU(),
        nn.Conv2d(128, 256, 3, 2, 1), nn.BatchNorm2d(256), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 1000)).cuda()


def main():
    torch.backends.cudnn.deterministic = True
    found = {}
    images = torch.randn(16, 3, 224, 224, generator=torch.Generator().manual_seed(3)).cuda()
    labels = torch.arange(16, device="cuda") * 7

    model = network().eval()
    with torch.inference_mode():
        for _ in range(50):
            output = model(images)
    found["eager"] = digest(output)

    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    found["training"] = digest(*[parameter for parameter in model.parameters()])

    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.manual_seed(5)
    parts = [torch.randn(1024, 1024, device="cuda") for _ in streams]
    torch.cuda.synchronize()
    for _ in range(20):
        for index, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                parts[index] = torch.tanh(parts[index] @ parts[index] / 32)
    torch.cuda.synchronize()
    found["streams"] = digest(*parts)

    pinned = torch.arange(1 << 22, dtype=torch.int32).pin_memory()
    there = pinned.cuda(non_blocking=True)
    found["copies"] = digest((there * 3 + 1).to("cpu", non_blocking=False))

    model = network().eval()
    static = torch.empty_like(images)
    with torch.inference_mode():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            static.copy_(images)
            for _ in range(3):
                model(static)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = model(static)
        for round_number in range(20):
            static.copy_(images * (1 + round_number % 3))
            graph.replay()
    torch.cuda.synchronize()
    found["graph"] = digest(result)
    return found


if __name__ == "__main__":
    print(json.dumps(main()), flush=True)
    sys.stdin.read()
