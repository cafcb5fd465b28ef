// The programs that the integration tests run as tenants, in one binary: the first argument says
// which.
#include <cstdio>
#include <cstring>

#include "tests/integration/tenants/gpu.h"

int main(int argc, char** argv) {
  using namespace rubato::test_tenant;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const struct {
    const char* name;
    int (*run)(int, char**);
  } programs[] = {{"periodic", Periodic},
                  {"flood", Flood},
                  {"workload", Workload},
                  {"memory", Memory},
                  {"forker", Forker}};
  for (const auto& program : programs) {
    if (argc > 1 && std::strcmp(argv[1], program.name) == 0) return program.run(argc - 1, argv + 1);
  }
  std::fprintf(stderr, "usage: rubato-test-tenant periodic|flood|workload|memory|forker [...]\n");
  return 2;
}
