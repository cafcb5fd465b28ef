#include "tests/fakes/apiserver_ca.h"

#include <arpa/inet.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <cstdint>
#include <cstdio>
#include <memory>

namespace rubato::testing {
namespace {

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;

bool AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str());
  if (extension == nullptr) return false;
  const bool added = X509_add_ext(certificate, extension, -1) == 1;
  X509_EXTENSION_free(extension);
  return added;
}

Certificate MakeCertificate(EVP_PKEY* key, const std::string& name, int64_t serial) {
  Certificate certificate(X509_new(), &X509_free);
  X509_set_version(certificate.get(), 2);
  ASN1_INTEGER_set_int64(X509_get_serialNumber(certificate.get()), serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 86400);
  X509_set_pubkey(certificate.get(), key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate.get()), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  return certificate;
}

bool IsAddress(const std::string& name) {
  in6_addr address{};
  return ::inet_pton(AF_INET, name.c_str(), &address) == 1 ||
         ::inet_pton(AF_INET6, name.c_str(), &address) == 1;
}

template <typename Write>
bool WriteFile(const std::string& path, Write write) {
  FILE* file = std::fopen(path.c_str(), "we");
  if (file == nullptr) return false;
  const bool written = write(file) == 1;
  return std::fclose(file) == 0 && written;
}

}  // namespace

base::Result<TestCertificates> MakeTestCertificates(const std::string& directory,
                                                    const std::vector<std::string>& names) {
  const base::Error failed{base::ErrorCode::kSystem, "cannot make certificates in " + directory};
  const Key ca_key(EVP_EC_gen("P-256"), &EVP_PKEY_free);
  const Key key(EVP_EC_gen("P-256"), &EVP_PKEY_free);
  if (!ca_key || !key) return failed;
  // A name of its own, so that another test's CA is not tried in its place.
  uint32_t number = 0;
  RAND_bytes(reinterpret_cast<unsigned char*>(&number), sizeof(number));
  const Certificate ca = MakeCertificate(ca_key.get(), "test CA " + std::to_string(number), 1);
  X509_set_issuer_name(ca.get(), X509_get_subject_name(ca.get()));
  const Certificate server = MakeCertificate(key.get(), "kube-apiserver", 2);
  X509_set_issuer_name(server.get(), X509_get_subject_name(ca.get()));
  std::string alternatives;
  for (const std::string& name : names) {
    if (!alternatives.empty()) alternatives += ",";
    alternatives += (IsAddress(name) ? "IP:" : "DNS:") + name;
  }
  if (!AddExtension(ca.get(), ca.get(), NID_basic_constraints, "critical,CA:TRUE") ||
      !AddExtension(ca.get(), ca.get(), NID_key_usage, "critical,keyCertSign,digitalSignature") ||
      !AddExtension(ca.get(), ca.get(), NID_subject_key_identifier, "hash") ||
      !AddExtension(server.get(), ca.get(), NID_basic_constraints, "critical,CA:FALSE") ||
      !AddExtension(server.get(), ca.get(), NID_ext_key_usage, "serverAuth") ||
      !AddExtension(server.get(), ca.get(), NID_subject_alt_name, alternatives) ||
      X509_sign(ca.get(), ca_key.get(), EVP_sha256()) == 0 ||
      X509_sign(server.get(), ca_key.get(), EVP_sha256()) == 0)
    return failed;
  TestCertificates made{directory + "/ca.crt", directory + "/server.crt",
                        directory + "/server.key"};
  if (!WriteFile(made.ca_file, [&](FILE* file) { return PEM_write_X509(file, ca.get()); }) ||
      !WriteFile(made.certificate_file,
                 [&](FILE* file) { return PEM_write_X509(file, server.get()); }) ||
      !WriteFile(made.key_file, [&](FILE* file) {
        return PEM_write_PrivateKey(file, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
      }))
    return failed;
  return made;
}

}  // namespace rubato::testing
