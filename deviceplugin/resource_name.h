// The names under which Kubernetes lets a node offer devices ("rubato.dev/gpu"). Pure.
#pragma once

#include <string_view>

namespace rubato::deviceplugin {

// As the kubelet checks it: a DNS name of at most 244 characters, '/', and a name of at most 63;
// nothing of kubernetes.io.
bool IsExtendedResourceName(std::string_view name);

}  // namespace rubato::deviceplugin
