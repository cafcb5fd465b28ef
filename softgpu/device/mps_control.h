// A stand-in for nvidia-cuda-mps-control: the program mode that makes tenants share one context.
//
// `-d` starts a daemon that holds <pipe directory>/control; commands come on standard input
// (`quit`, `get_server_list`) and are passed to it. A client whose CUDA_MPS_PIPE_DIRECTORY names
// that directory connects to the socket, learns the server's number and says it to the device,
// which puts contexts of one number side by side.
#ifndef SOFTGPU_DEVICE_MPS_CONTROL_H_
#define SOFTGPU_DEVICE_MPS_CONTROL_H_

#include <cstdint>
#include <string>

namespace rubato::softgpu {

// $CUDA_MPS_PIPE_DIRECTORY, or /tmp/nvidia-mps as with the real one.
std::string MpsPipeDirectory();

// The number of the server behind `directory`, or 0 if none answers.
uint64_t FindMpsServer(const std::string& directory);

// The program: returns its exit status. With -d the daemon goes to the background, with -f it
// stays.
int MpsControlMain(int argc, char** argv);

}  // namespace rubato::softgpu

#endif  // SOFTGPU_DEVICE_MPS_CONTROL_H_
