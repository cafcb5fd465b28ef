"""What a memory limit looks like to PyTorch: totals from the driver and NVML, a clean out-of-memory
error, life after it, and a second process of the same tenant that finds the rest taken.

usage: torch_memory.py LIMIT_BYTES | torch_memory.py --child BYTES
"""

import json
import subprocess
import sys

import torch


def allocate(count):
    return torch.empty(count, dtype=torch.uint8, device="cuda")


def try_allocate(count):
    try:
        block = allocate(count)
        torch.cuda.synchronize()
        return block, "ok"
    except torch.cuda.OutOfMemoryError:
        return None, "OutOfMemoryError"
    except RuntimeError as error:
        return None, "%s: %s" % (type(error).__name__, str(error).splitlines()[0])


def nvml_memory():
    try:
        import pynvml
        pynvml.nvmlInit()
        info = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))
        return {"total": info.total, "free": info.free}
    except Exception as error:  # no NVML module: told as such
        return {"error": str(error)}


def main(limit):
    found = {}
    free, total = torch.cuda.mem_get_info()
    found["mem_get_info"] = {"free": free, "total": total}
    found["nvml"] = nvml_memory()
    half, found["half"] = try_allocate(limit // 2)
    _, found["over"] = try_allocate(limit)
    small, found["after"] = try_allocate(limit // 8)
    if small is not None:
        small.fill_(3)
        found["usable_after"] = bool((small == 3).all().item())
    # 5/8 are taken here; another 1/2 does not fit, in whichever process it is asked for.
    child = subprocess.run([sys.executable, __file__, "--child", str(limit // 2)],
                           stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
                           check=False)
    found["child"] = child.stdout.strip() or "exit code %d" % child.returncode
    del half, small
    torch.cuda.empty_cache()
    _, found["freed"] = try_allocate(limit * 5 // 8)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        print(try_allocate(int(sys.argv[2]))[1], flush=True)
    else:
        print(json.dumps(main(int(sys.argv[1]))), flush=True)
        sys.stdin.read()
