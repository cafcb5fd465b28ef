#!/usr/bin/env python3
"""Runs the Go tests of apicheck/: the chart's objects against Kubernetes' own types."""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SKIPPED = 77


def main():
    found = subprocess.run([ROOT / "tools" / "get_go"], capture_output=True, text=True,
                           stdin=subprocess.DEVNULL, check=False)
    if found.returncode != 0:
        print(f"THE CHART IS NOT HELD AGAINST KUBERNETES' TYPES: {found.stderr.strip()}",
              file=sys.stderr)
        return SKIPPED
    # As Helm is built, so that both share what they have compiled.
    environment = {**os.environ, "CGO_ENABLED": "0"}
    return subprocess.run([found.stdout.strip(), "test", "-trimpath", "-count=1", "-v", "./..."],
                          cwd=HERE / "apicheck", env=environment, stdin=subprocess.DEVNULL,
                          check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
