"""The SM clock as a kernel sees it: cycles of %clock64 over nanoseconds of %globaltimer.

A driver query would give a value some tens of milliseconds old; this one is taken right after a
job, by a kernel of one thread that runs about 25 us. %globaltimer ticks coarsely (up to 1 us), so
both readings are taken just after a tick.

The kernel is PTX text that the driver compiles, loaded through the driver API of the current
context; if that fails, PyTorch's own kernel compiler is tried; if that fails too, there is no clock
and the equal-clock fields stay empty (the reason is kept in `error`).
"""

import ctypes

SPAN_NS = 24000

PTX = """
.version 7.0
.target sm_70
.address_size 64

.visible .entry sm_clock_probe(
    .param .u64 out_ptr,
    .param .u32 out_index,
    .param .u64 span_ns)
{
    .reg .pred  %p<3>;
    .reg .b32   %r<2>;
    .reg .b64   %rd<14>;

    ld.param.u64    %rd1, [out_ptr];
    ld.param.u32    %r1, [out_index];
    ld.param.u64    %rd2, [span_ns];
    cvta.to.global.u64 %rd3, %rd1;
    mul.wide.u32    %rd4, %r1, 16;
    add.s64         %rd5, %rd3, %rd4;

    mov.u64         %rd6, %globaltimer;
TICK:
    mov.u64         %rd7, %globaltimer;
    setp.eq.u64     %p1, %rd7, %rd6;
    @%p1 bra        TICK;
    mov.u64         %rd8, %clock64;
    add.s64         %rd9, %rd7, %rd2;
WAIT:
    mov.u64         %rd10, %globaltimer;
    setp.lt.u64     %p2, %rd10, %rd9;
    @%p2 bra        WAIT;
    mov.u64         %rd11, %clock64;
    sub.s64         %rd12, %rd11, %rd8;
    sub.s64         %rd13, %rd10, %rd7;
    st.global.u64   [%rd5], %rd12;
    st.global.u64   [%rd5+8], %rd13;
    ret;
}
"""

CUDA_SOURCE = """
extern "C" __global__ void sm_clock_probe(unsigned long long* out, unsigned index,
                                          unsigned long long span_ns) {
  unsigned long long first, start, end, c0, c1;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(first));
  do { asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start)); } while (start == first);
  asm volatile("mov.u64 %0, %clock64;" : "=l"(c0));
  do { asm volatile("mov.u64 %0, %globaltimer;" : "=l"(end)); } while (end < start + span_ns);
  asm volatile("mov.u64 %0, %clock64;" : "=l"(c1));
  out[2 * index] = c1 - c0;
  out[2 * index + 1] = end - start;
}
"""


class _DriverLauncher:
    """The PTX through cuModuleLoadData and cuLaunchKernel in the current context."""

    def __init__(self):
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._module = ctypes.c_void_p()
        self._check(self._cuda.cuModuleLoadData(ctypes.byref(self._module), PTX.encode()),
                    "cuModuleLoadData")
        self._function = ctypes.c_void_p()
        self._check(self._cuda.cuModuleGetFunction(ctypes.byref(self._function), self._module,
                                                   b"sm_clock_probe"), "cuModuleGetFunction")
        self._out = ctypes.c_uint64()
        self._index = ctypes.c_uint32()
        self._span = ctypes.c_uint64(SPAN_NS)
        self._params = (ctypes.c_void_p * 3)(
            *[ctypes.cast(ctypes.pointer(value), ctypes.c_void_p)
              for value in (self._out, self._index, self._span)])

    @staticmethod
    def _check(code, what):
        if code != 0:
            raise RuntimeError("%s returned CUresult %d" % (what, code))

    def launch(self, out_ptr, index, stream):
        self._out.value = out_ptr
        self._index.value = index
        self._check(self._cuda.cuLaunchKernel(self._function, 1, 1, 1, 1, 1, 1, 0,
                                              ctypes.c_void_p(stream.cuda_stream), self._params,
                                              None), "cuLaunchKernel")


class _TorchLauncher:
    """The CUDA text through PyTorch's own runtime compiler (2.9 and later)."""

    def __init__(self, torch):
        self._kernel = torch.cuda._compile_kernel(CUDA_SOURCE, "sm_clock_probe")
        self._buffer = None

    def bind(self, buffer):
        self._buffer = buffer

    def launch(self, out_ptr, index, stream):
        del out_ptr  # the compiler's wrapper takes tensors
        self._kernel((1, 1, 1), (1, 1, 1), (self._buffer, index, SPAN_NS), 0, stream)


class ClockProbe:
    """Launches of the probe into a buffer on the GPU, read back in one piece at the end."""

    def __init__(self, torch, capacity):
        self._torch = torch
        self._capacity = capacity
        self._buffer = torch.zeros(2 * capacity, dtype=torch.int64, device="cuda")
        self._launcher = None
        self.error = None
        reasons = []
        for make in (_DriverLauncher, lambda: _TorchLauncher(torch)):
            try:
                launcher = make()
                if isinstance(launcher, _TorchLauncher):
                    launcher.bind(self._buffer)
                launcher.launch(self._buffer.data_ptr(), 0, torch.cuda.current_stream())
                torch.cuda.synchronize()
                if int(self._buffer[0].item()) > 0 and int(self._buffer[1].item()) > 0:
                    self._launcher = launcher
                    break
                reasons.append("the probe kernel wrote nothing")
            except (OSError, AttributeError, RuntimeError, TypeError, ValueError) as error:
                reasons.append(str(error).splitlines()[0] if str(error) else repr(error))
        if self._launcher is None:
            self.error = "; ".join(reasons)
        self.used = 0

    def launch(self, stream):
        """One probe on `stream`, not waited for; its index, or None without a probe."""
        if self._launcher is None or self.used >= self._capacity:
            return None
        index = self.used
        self._launcher.launch(self._buffer.data_ptr(), index, stream)
        self.used += 1
        return index

    def read_mhz(self):
        """The clocks of all probes so far, in order of launch, and a fresh start."""
        self._torch.cuda.synchronize()
        rows = self._buffer[:2 * self.used].cpu().tolist()
        self.used = 0
        return [clock_mhz(rows[i], rows[i + 1]) for i in range(0, len(rows), 2)]


def clock_mhz(cycles, nanoseconds):
    """MHz of one reading; None for one that cannot be (a context switch in its middle)."""
    if nanoseconds <= 0 or cycles <= 0:
        return None
    mhz = 1e3 * cycles / nanoseconds
    # Longer than three spans: the kernel was taken off the SM, and %clock64 may not have counted.
    return mhz if nanoseconds < 3 * SPAN_NS and 100 < mhz < 5000 else None
