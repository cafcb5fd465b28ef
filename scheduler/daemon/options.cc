#include "scheduler/daemon/options.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>

#include "base/runtime_dir.h"
#include "proto/abi/region.h"
#include "scheduler/daemon/attach_directory.h"

namespace rubato::sched {
namespace {

// A bad value, in the words of CLI11 ("--flag: ...").
std::string CheckDuration(const std::string& text) {
  const auto parsed = base::ParseDuration(text);
  return parsed ? std::string() : parsed.error().message;
}

void Override(const std::string& text, base::Nanos* constant_ns) {
  if (!text.empty()) *constant_ns = *base::ParseDuration(text);
}

// Of this user; "none" where there is no place for a user's state.
std::string DefaultProfileStore() {
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && *state == '/') return std::string(state) + "/rubato/profiles.sqlite";
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home != '/' || home[1] == '\0') return "none";
  return std::string(home) + "/.local/state/rubato/profiles.sqlite";
}

}  // namespace

ParsedOptions ParseOptions(int argc, const char* const* argv) {
  Options options;
  std::string mode = "timeslice";
  std::string bound;
  std::string margin;
  std::string touch_lead;
  std::string fallback_bound;

  CLI::App app(
      "rubato-scheduler shares the GPUs of this node between real-time and best-effort programs. "
      "`rubato up` starts it; `rubato run` and the agent talk to it.");
  app.set_version_flag("--version", "rubato-scheduler " RUBATO_VERSION " (abi " +
                                        std::to_string(abi::kMajor) + "." +
                                        std::to_string(abi::kMinor) + ")");
  app.add_option("--runtime-dir", options.runtime_dir,
                 "Private directory for sockets; its parent must exist [default: "
                 "$XDG_RUNTIME_DIR/rubato]");
  app.add_option(
      "--attach-directory", options.attach_directory,
      "Where each tenant has a folder with its attach socket, shared with whoever mounts "
      "them into containers [default: <runtime-dir>/attach]");
  bool health = false;
  bool alive = false;
  app.add_flag("--health", health,
               "Ask the scheduler that runs there whether it serves; end with 0 if it does");
  app.add_flag("--alive", alive, "The same, but one that drains will do: for liveness probes");
  app.add_option("--mode", mode, "How tenants share a GPU: timeslice, hybrid or mps")
      ->capture_default_str()
      ->check(CLI::IsMember({"timeslice", "hybrid", "mps"}));
  app.add_option("--metrics-address", options.metrics_address,
                 "host:port of the metrics; port 0 for a free one, none for no metrics")
      ->capture_default_str();
  app.add_option("--mps-directory", options.mps_directory,
                 "Pipe directory of the MPS control daemon [default: <runtime-dir>/mps]");
  app.add_option("--time-dilation", options.time_dilation,
                 "Factor by which the GPU is slower than a real one: for the software GPU")
      ->capture_default_str()
      ->envname("RUBATO_TIME_DILATION")
      ->check(CLI::Range(1u, 10000u));
  app.add_option("--profile-store", options.profile_store,
                 "File that keeps the durations of kernels for the next start, or none [default: "
                 "rubato/profiles.sqlite in $XDG_STATE_HOME or ~/.local/state]")
      ->envname("RUBATO_PROFILE_STORE");
  app.add_option("--log-level", options.log_level, "debug, info, warning or error")
      ->capture_default_str()
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}));
  const CLI::Validator duration(CheckDuration, "DURATION");
  app.add_option("--bound", bound,
                 "Best-effort work in flight beside an unpredicted real-time tenant [300us]")
      ->check(duration);
  app.add_option("--margin", margin,
                 "Best-effort work ends this long before a predicted release [120us]")
      ->check(duration);
  app.add_option("--touch-lead", touch_lead,
                 "Pre-touch kernels run this long before a predicted release [220us]")
      ->check(duration);
  app.add_option("--fallback-bound", fallback_bound,
                 "Best-effort work in flight once the scheduler is lost [2ms]")
      ->check(duration);

  ParsedOptions parsed;
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    app.exit(help, std::cout, std::cerr);
    return parsed;
  } catch (const CLI::CallForVersion& version) {
    app.exit(version, std::cout, std::cerr);
    return parsed;
  } catch (const CLI::ParseError& error) {
    parsed.exit_code = 2;
    parsed.complaint = std::string(error.what()) + "; see rubato-scheduler --help";
    for (char& c : parsed.complaint) {
      if (c == '\n') c = ' ';
    }
    return parsed;
  }

  if (options.runtime_dir.empty()) options.runtime_dir = base::DefaultRuntimeDir();
  if (options.runtime_dir.front() != '/') {
    parsed.exit_code = 2;
    parsed.complaint = "--runtime-dir must be an absolute path, not " + options.runtime_dir;
    return parsed;
  }
  while (options.runtime_dir.size() > 1 && options.runtime_dir.back() == '/')
    options.runtime_dir.pop_back();
  if (alive) options.probe = Options::Probe::kAnswers;
  if (health) options.probe = Options::Probe::kServes;
  options.attach_shared = !options.attach_directory.empty();
  if (!options.attach_shared)
    options.attach_directory = options.runtime_dir + "/" + base::kAttachDirectoryName;
  while (options.attach_directory.size() > 1 && options.attach_directory.back() == '/')
    options.attach_directory.pop_back();
  if (std::string complaint = AttachDirectory::Complaint(options.attach_directory);
      !complaint.empty()) {
    parsed.exit_code = 2;
    parsed.complaint = std::move(complaint);
    return parsed;
  }
  if (options.profile_store.empty()) options.profile_store = DefaultProfileStore();
  if (options.profile_store == "none") options.profile_store.clear();
  if (!options.profile_store.empty() && options.profile_store.front() != '/') {
    parsed.exit_code = 2;
    parsed.complaint =
        "--profile-store must be an absolute path or none, not " + options.profile_store;
    return parsed;
  }
  if (options.metrics_address == "none") options.metrics_address.clear();
  if (!options.metrics_address.empty() && options.metrics_address.find(':') == std::string::npos) {
    parsed.exit_code = 2;
    parsed.complaint =
        "--metrics-address must be host:port or none, not " + options.metrics_address;
    return parsed;
  }
  if (mode == "hybrid") options.mode = abi::Mode::kHybrid;
  if (mode == "mps") options.mode = abi::Mode::kMps;
  if (options.mode == abi::Mode::kTimeslice) {
    options.mps_directory.clear();
  } else if (options.mps_directory.empty()) {
    options.mps_directory = options.runtime_dir + "/" + base::kMpsDirectoryName;
  }
  if (options.mps_directory.size() > 111) {
    parsed.exit_code = 2;
    parsed.complaint =
        "--mps-directory must be at most 111 characters long; choose a shorter "
        "--runtime-dir or --mps-directory";
    return parsed;
  }
  policies::Constants constants;
  Override(bound, &constants.bound_ns);
  Override(margin, &constants.margin_ns);
  Override(touch_lead, &constants.touch_lead_ns);
  Override(fallback_bound, &constants.fallback_bound_ns);
  options.constants = constants.Dilated(options.time_dilation);
  parsed.options = std::move(options);
  return parsed;
}

}  // namespace rubato::sched
