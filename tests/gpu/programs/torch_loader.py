"""Training with DataLoader workers forked after CUDA is up, as programs do: the children inherit
the shim and touch no GPU.
"""

import json
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Numbers(Dataset):

    def __len__(self):
        return 2048

    def __getitem__(self, index):
        return torch.full((256,), float(index % 17)), index % 10


def main():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    torch.cuda.synchronize()
    seen = 0
    for _ in range(2):
        loader = DataLoader(Numbers(), batch_size=64, num_workers=4, pin_memory=True,
                            multiprocessing_context="fork")
        for values, labels in loader:
            values, labels = values.cuda(non_blocking=True), labels.cuda(non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(values), labels).backward()
            optimizer.step()
            seen += len(labels)
    torch.cuda.synchronize()
    total = sum(float(p.double().sum().item()) for p in model.parameters())
    return {"seen": seen, "sum": repr(total)}


if __name__ == "__main__":
    print(json.dumps(main()), flush=True)
    sys.stdin.read()
