// Facts about the HIP library that the program has loaded.
#pragma once

namespace rubato::shim {

// Its version, 502 for 5.2; 0 while it is not known.
int RuntimeVersion();

}  // namespace rubato::shim
