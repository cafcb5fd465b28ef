// The per-thread forms of entry points, all generated from twins.def.
#include "softgpu/cuda/driver.h"

// The header gives these names to newer forms; here each name means its own.
#undef cuStreamBeginCapture
#undef cuStreamGetCaptureInfo
#undef cuStreamUpdateCaptureDependencies
#undef cuStreamWriteValue32
#undef cuStreamWriteValue64
#undef cuStreamWaitValue32
#undef cuStreamWaitValue64
#undef cuStreamBatchMemOp

#define TWIN(name, suffix, parameters, arguments) extern "C" CUresult name parameters;
#include "softgpu/cuda/twins.def"
#undef TWIN

#define TWIN(name, suffix, parameters, arguments) \
  RUBATO_SOFTGPU_API name##suffix parameters {    \
    const rubato::softgpu::PerThreadDefault twin; \
    return name arguments;                        \
  }
#include "softgpu/cuda/twins.def"
