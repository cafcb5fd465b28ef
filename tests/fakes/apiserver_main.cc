// fake-apiserver: the stand-in as a process, for tests in Python. One JSON object per line on
// standard input, one answer per line on standard output; ends when its input does.
//
//   fake-apiserver [--directory DIR] [--plain] [--token TOKEN] [--address 127.0.0.1|::1] [--port N]
//
// First line: {"ready": true, "url", "host", "port", "ca_file", "token_file", "directory"}. DIR
// (needed unless --plain without a token) then looks like a service account's folder: ca.crt,
// token, namespace. Commands: see Commands() below; answers are {"ok": true, ...} or {"error":
// ...}.

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "tests/fakes/apiserver.h"
#include "tests/fakes/apiserver_ca.h"

namespace {

using nlohmann::json;
using rubato::testing::ApiServer;
namespace base = rubato::base;

base::Nanos Seconds(const json& command, const char* key, double otherwise) {
  return static_cast<base::Nanos>(command.value(key, otherwise) * 1e9);
}

ApiServer::Fault FaultOf(const json& command) {
  ApiServer::Fault fault;
  fault.method = command.value("method", "");
  fault.path_prefix = command.value("path", "");
  fault.count = command.value("count", 1u);
  fault.status = command.value("status", 0);
  fault.body = command.value("body", "");
  fault.retry_after_s = command.value("retry_after", 0);
  fault.delay_ns = Seconds(command, "delay", 0);
  fault.drop = command.value("drop", false);
  fault.hang = command.value("hang", false);
  fault.cut = command.value("cut", false);
  return fault;
}

// True if `text` occurs in the event, as reason, message or name of the pod.
bool Matches(const json& event, const json& command) {
  const std::string reason = command.value("reason", "");
  const std::string pod = command.value("pod", "");
  const std::string message = command.value("message", "");
  return (reason.empty() || event.value("reason", "") == reason) &&
         (pod.empty() || event["involvedObject"].value("name", "") == pod) &&
         event.value("message", "").find(message) != std::string::npos;
}

json Requests(const ApiServer& server) {
  json requests = json::array();
  for (const ApiServer::Request& request : server.requests()) {
    requests.push_back({{"method", request.method},
                        {"target", request.target},
                        {"body", request.body},
                        {"content_type", request.content_type},
                        {"authorized", !request.authorization.empty()},
                        {"user_agent", request.user_agent}});
  }
  return requests;
}

json Command(ApiServer* server, const json& command) {
  const std::string op = command.at("op");
  const std::string name_space = command.value("namespace", "default");
  const std::string name = command.value("name", "");
  if (op == "put-pod") return {{"version", server->PutPod(command.at("pod"))}};
  if (op == "patch-pod") {
    const uint64_t version = server->PatchPod(name_space, name, command.at("patch"));
    return version == 0 ? json{{"error", "no such pod"}} : json{{"version", version}};
  }
  if (op == "delete-pod") {
    return server->DeletePod(name_space, name) ? json::object() : json{{"error", "no such pod"}};
  }
  if (op == "put-node") return server->PutNode(name), json::object();
  if (op == "node") return {{"node", server->node(name)}};
  if (op == "events") return {{"events", server->events()}};
  if (op == "requests") return {{"requests", Requests(*server)}};
  if (op == "state") {
    return {{"open_watches", server->open_watches()}, {"connections", server->connections()}};
  }
  if (op == "bookmark") return server->Bookmark(), json::object();
  if (op == "raw") return server->SendRaw(command.at("bytes")), json::object();
  if (op == "expire-watches") return server->ExpireWatches(), json::object();
  if (op == "end-watches") return server->EndWatches(), json::object();
  if (op == "drop-watches") {
    if (command.value("mid_line", false)) {
      server->DropWatchesMidLine();
    } else {
      server->DropWatches();
    }
    return json::object();
  }
  if (op == "compact") return server->Compact(), json::object();
  if (op == "forget") return server->Forget(), json::object();
  if (op == "fail") return server->AddFault(FaultOf(command)), json::object();
  if (op == "clear-faults") return server->ClearFaults(), json::object();
  if (op == "token") return server->SetToken(command.at("token")), json::object();
  if (op == "chunk-bytes") return server->SetChunkBytes(command.at("bytes")), json::object();
  if (op == "page-limit") return server->SetPageLimit(command.at("items")), json::object();
  const base::Nanos limit_ns = Seconds(command, "timeout", 30);
  if (op == "wait-watches") {
    const size_t count = command.value("count", size_t{1});
    if (server->WaitFor([&] { return server->open_watches() >= count; }, limit_ns))
      return json::object();
    return {{"error", "out of time"}};
  }
  if (op == "wait-event") {
    json found;
    const bool there = server->WaitFor(
        [&] {
          for (const json& event : server->events()) {
            if (Matches(event, command) && event.value("count", 0) >= command.value("count", 1)) {
              found = event;
              return true;
            }
          }
          return false;
        },
        limit_ns);
    return there ? json{{"event", found}} : json{{"error", "out of time"}};
  }
  if (op == "wait-label") {
    const std::string label = command.at("label");
    json value;
    const bool there = server->WaitFor(
        [&] {
          const json node = server->node(name);
          if (!node.is_object()) return false;
          const json& labels = node["metadata"]["labels"];
          value = labels.contains(label) ? labels[label] : json(nullptr);
          return command.contains("value") ? value == command["value"] : !value.is_null();
        },
        limit_ns);
    return there ? json{{"value", value}} : json{{"error", "out of time"}};
  }
  return {{"error", "unknown op '" + op + "'"}};
}

int Fail(const std::string& message) {
  std::fprintf(stderr, "fake-apiserver: %s\n", message.c_str());
  return 1;
}

bool WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  return static_cast<bool>(file.flush());
}

}  // namespace

int main(int argc, char** argv) {
  ApiServer::Options options;
  std::string directory;
  bool plain = false;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : ""; };
    if (flag == "--plain") {
      plain = true;
    } else if (flag == "--directory") {
      directory = value();
    } else if (flag == "--token") {
      options.token = value();
    } else if (flag == "--address") {
      options.address = value();
    } else if (flag == "--port") {
      options.port = static_cast<uint16_t>(std::stoi(value()));
    } else {
      return Fail("unknown flag " + flag);
    }
  }
  if (directory.empty() && (!plain || !options.token.empty()))
    return Fail("--directory is needed for the certificates and the token");
  std::string ca_file;
  if (!plain) {
    auto made = rubato::testing::MakeTestCertificates(directory);
    if (!made) return Fail(made.error().message);
    ca_file = made->ca_file;
    options.certificate_file = made->certificate_file;
    options.key_file = made->key_file;
  }
  if (!directory.empty() && (!WriteFile(directory + "/token", options.token) ||
                             !WriteFile(directory + "/namespace", "rubato-system")))
    return Fail("cannot write into " + directory);
  auto server = ApiServer::Start(options);
  if (!server) return Fail(server.error().message);
  const json ready = {
      {"ready", true},           {"url", (*server)->url()},
      {"host", options.address}, {"port", (*server)->port()},
      {"ca_file", ca_file},      {"token_file", directory.empty() ? "" : directory + "/token"},
      {"directory", directory}};
  std::cout << ready.dump() << std::endl;
  std::string line;
  while (std::getline(std::cin, line)) {
    json answer;
    try {
      answer = Command(server->get(), json::parse(line));
    } catch (const std::exception& error) {
      answer = {{"error", error.what()}};
    }
    if (!answer.contains("error")) answer["ok"] = true;
    std::cout << answer.dump() << std::endl;
  }
  return 0;
}
