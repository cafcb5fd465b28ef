"""The loads and the ways of bench/gpu, as data.

A load is a set of real-time and best-effort tenants; a way is how they share the GPU. What a tenant
does is in tenant.py, how a way is set up in cell.py. Nothing here needs a GPU.
"""

import dataclasses

POISSON_MODELS = ("resnet50", "resnet152", "vgg16", "vgg19", "densenet121")


@dataclasses.dataclass(frozen=True)
class TenantSpec:
    """One tenant process. `args` go to tenant.py as they are."""

    name: str
    role: str  # "rt" or "be"
    args: tuple


@dataclasses.dataclass(frozen=True)
class Load:
    name: str
    about: str
    rt: tuple
    be: tuple
    period_ms: float  # 0: aperiodic, Poisson releases
    deadline_ms: float

    def rt_key(self):
        """Loads with equal real-time sets share one measurement of that set alone."""
        return tuple(spec.args for spec in self.rt)


@dataclasses.dataclass(frozen=True)
class Way:
    name: str
    about: str
    mps: bool = False
    priorities: bool = False
    rubato_mode: str = ""  # the --mode of `rubato up`; empty: Rubato has no part in it


def _periodic(model):
    return TenantSpec("rt-" + model, "rt", ("--work", "graph", "--model", model, "--batch", "1",
                                            "--period-ms", "10"))


def _best_effort(name, *args):
    return TenantSpec("be-" + name, "be", args)


def _graph(model, batch, depth):
    return _best_effort(model, "--work", "graph", "--model", model, "--batch", str(batch),
                        "--depth", str(depth))


LOADS = {load.name: load for load in (
    Load("vgg19-resnet152", "VGG19 every 10 ms beside ResNet152 graphs in a closed loop",
         (_periodic("vgg19"),), (_graph("resnet152", 1, 1),), 10.0, 10.0),
    Load("resnet50-gemm8192", "ResNet50 every 10 ms beside bf16 GEMMs of 8192, 64 queued",
         (_periodic("resnet50"),),
         (_best_effort("gemm8192", "--work", "gemm", "--size", "8192", "--depth", "64"),),
         10.0, 10.0),
    Load("resnet50-train", "ResNet50 every 10 ms beside its training, batch 64, 8 steps queued",
         (_periodic("resnet50"),),
         (_best_effort("train", "--work", "train", "--model", "resnet50", "--batch", "64",
                       "--depth", "8"),),
         10.0, 10.0),
    Load("resnet50-vgg16", "ResNet50 every 10 ms beside VGG16 graphs of batch 32, 16 queued",
         (_periodic("resnet50"),), (_graph("vgg16", 32, 16),), 10.0, 10.0),
    Load("resnet50-copy", "ResNet50 every 10 ms beside 2 GiB device copies, 64 queued",
         (_periodic("resnet50"),),
         (_best_effort("copy", "--work", "copy", "--bytes", str(2 << 30), "--depth", "64"),),
         10.0, 10.0),
    Load("five-poisson", "5 models, Poisson 20/s each, beside 5 models in closed loops",
         tuple(TenantSpec("rt-" + model, "rt",
                          ("--work", "graph", "--model", model, "--batch", "1",
                           "--poisson-per-s", "20", "--seed", str(1000 + index)))
               for index, model in enumerate(POISSON_MODELS)),
         tuple(_graph(model, 1, 1) for model in POISSON_MODELS), 0.0, 50.0),
)}

WAYS = {way.name: way for way in (
    Way("alone", "each set by itself, no MPS: what all others are compared with"),
    Way("timeslice", "side by side, the driver's time slices"),
    Way("mps", "all tenants in one MPS server", mps=True),
    Way("mps-priority", "MPS, high stream priority for real-time, low client one for best-effort",
        mps=True, priorities=True),
    Way("rubato-timeslice", "rubato up --mode timeslice", rubato_mode="timeslice"),
    Way("rubato-hybrid", "rubato up --mode hybrid", rubato_mode="hybrid"),
    Way("rubato-mps", "rubato up --mode mps", rubato_mode="mps"),
)}


def select(text, table, what):
    """Names of a comma-separated list in the table's order; `all` is every one."""
    if text == "all":
        return list(table)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in table]
    if unknown or not names:
        raise ValueError("unknown %s %s: choose from %s" %
                         (what, ", ".join(unknown) or "''", ", ".join(table)))
    return [name for name in table if name in names]


def rubato_run_args(load, spec):
    """The flags of `rubato run` for one tenant: what a user of Rubato would declare."""
    if spec.role == "be":
        return ["--class", "best-effort", "--name", spec.name]
    args = ["--class", "realtime", "--name", spec.name]
    if load.period_ms:
        args += ["--period", "%gms" % load.period_ms]
    return args + ["--deadline", "%gms" % load.deadline_ms]
