// Certificates for a test: a CA made on the spot, and a server's certificate that it has signed.
//
// Made anew for each test, so that no key lies in the tree and none expires.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace rubato::testing {

struct TestCertificates {
  std::string ca_file;  // PEM, all three.
  std::string certificate_file;
  std::string key_file;
};

// Writes ca.crt, server.crt and server.key into `directory`, valid for a day from an hour ago and
// for `names` (host names and addresses).
base::Result<TestCertificates> MakeTestCertificates(const std::string& directory,
                                                    const std::vector<std::string>& names = {
                                                        "localhost", "127.0.0.1", "::1"});

}  // namespace rubato::testing
