// SHA-256 by OpenSSL, for naming shims by their content.
#pragma once

#include <memory>
#include <string>
#include <string_view>

struct evp_md_ctx_st;

namespace rubato::agent {

class ContentHash {
 public:
  ContentHash();
  void Add(std::string_view bytes);
  // 64 hexadecimal digits; empty if the library failed. Ends the sum.
  std::string Hex();

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
  bool good_ = false;
};

}  // namespace rubato::agent
