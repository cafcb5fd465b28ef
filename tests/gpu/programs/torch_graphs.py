"""Captures of every kind PyTorch uses, each replayed with new inputs and compared with eager: forks
to side streams inside the capture, the three capture modes, allocations, a graph
captured while another thread launches.
"""

import json
import sys
import threading

import torch


def run_case(name, capture, inputs, found):
    """`capture(x)` returns the tensor that a replay recomputes from x."""
    x = inputs[0].clone()
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        capture(x)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    mode = name.split(":")[1] if ":" in name else "global"
    with torch.cuda.graph(graph, capture_error_mode=mode):
        y = capture(x)
    same = True
    for value in inputs:
        x.copy_(value)
        graph.replay()
        got = y.clone()
        same = same and torch.equal(got, capture(value.clone()))
    found[name] = bool(same)


def main():
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    weight = torch.randn(512, 512, device="cuda")
    inputs = [torch.randn(512, 512, device="cuda") for _ in range(4)]
    found = {}

    def plain(x):
        return torch.relu(x @ weight) + 1

    def forked(x):
        main_stream = torch.cuda.current_stream()
        side = torch.cuda.Stream()
        side.wait_stream(main_stream)
        with torch.cuda.stream(side):
            a = (x * 2) @ weight
        b = (x * 3) @ weight
        main_stream.wait_stream(side)
        return a + b

    def allocating(x):
        for _ in range(10):
            x = torch.cat([x[:256], x[256:] * 0.5]).contiguous()
        return x

    for mode in ("global", "thread_local", "relaxed"):
        run_case("plain:" + mode, plain, inputs, found)
    run_case("forked", forked, inputs, found)
    run_case("allocating", allocating, inputs, found)

    stop = threading.Event()
    errors = []

    def launcher():
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                y = torch.zeros(1024, device="cuda")
                while not stop.is_set():
                    y.add_(1)
                    stream.synchronize()
        except RuntimeError as error:
            errors.append(str(error).splitlines()[0])

    thread = threading.Thread(target=launcher)
    thread.start()
    try:
        run_case("beside a launching thread:thread_local", plain, inputs, found)
    finally:
        stop.set()
        thread.join()
    found["launching thread had no error"] = not errors
    torch.cuda.synchronize()
    return found


if __name__ == "__main__":
    print(json.dumps(main()), flush=True)
    sys.stdin.read()
