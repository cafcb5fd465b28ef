#include "agent/command_line.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>
#include <utility>
#include <vector>

namespace rubato::agent {

ParsedCommandLine ParseCommandLine(int argc, const char* const* argv) {
  CommandLine line;
  std::string metrics_address;
  std::string node_name;
  std::string log_level;
  std::vector<std::string> set;

  CLI::App app(
      "rubato-agent offers the GPUs of this node to Kubernetes in slots and tells rubato-scheduler "
      "what each container was promised. Without a command it runs until SIGTERM.");
  app.set_version_flag("--version", "rubato-agent " RUBATO_VERSION);
  app.require_subcommand(0, 1);
  app.fallthrough();
  app.add_option("--config", line.sources.path, "Configuration file (YAML), see docs/agent.md");
  CLI::Option* metrics = app.add_option("--metrics-address", metrics_address,
                                        "host:port of metrics and health; port 0 for a free one, "
                                        "none for none");
  CLI::Option* node = app.add_option("--node-name", node_name, "Name of this node [NODE_NAME]");
  CLI::Option* level = app.add_option("--log-level", log_level, "debug, info, warning or error");
  app.add_option("--set", set,
                 "A key of the configuration file: --set gpu.source=software; lists with commas")
      ->allow_extra_args(false);

  CLI::App* run = app.add_subcommand("run", "Run the agent (the default)");
  CLI::App* install = app.add_subcommand(
      "install-shim", "Put the shims on the host, under their content's hash, and prepare folders");
  install->add_option("--from", line.install_from, "Folder with librubato-*.so and softgpu/")
      ->capture_default_str();
  install->add_option("--to", line.install_to, "Folder on the host [hostRoot]");
  CLI::App* cleanup = app.add_subcommand(
      "cleanup",
      "Remove what an uninstalled Rubato left on this node; exit code 3 while pods hold slots");
  bool once = false;
  CLI::Option* once_flag = cleanup->add_flag("--once", once, "Try once and end (the default)");
  cleanup
      ->add_flag("--wait", line.cleanup_wait,
                 "Try until it is done, then sleep until SIGTERM: for a DaemonSet")
      ->excludes(once_flag);
  CLI::App* check =
      app.add_subcommand("check-config", "Read the configuration, print every key, and end");

  ParsedCommandLine parsed;
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
    parsed.complaint = std::string(error.what()) + "; see rubato-agent --help";
    for (char& c : parsed.complaint) {
      if (c == '\n') c = ' ';
    }
    return parsed;
  }
  (void)run;
  if (install->parsed()) line.command = Command::kInstallShim;
  if (cleanup->parsed()) line.command = Command::kCleanup;
  if (check->parsed()) line.command = Command::kCheckConfig;
  for (const std::string& text : set) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos) {
      parsed.exit_code = 2;
      parsed.complaint = "--set " + text + ": write key=value; see rubato-agent --help";
      return parsed;
    }
    line.sources.flags.emplace_back(text.substr(0, equals), text.substr(equals + 1));
  }
  if (metrics->count() > 0) line.sources.flags.emplace_back("metrics.address", metrics_address);
  if (node->count() > 0) line.sources.flags.emplace_back("kubernetes.nodeName", node_name);
  if (level->count() > 0) line.sources.flags.emplace_back("log.level", log_level);
  line.sources.environment = [](const char* name) -> const char* { return std::getenv(name); };
  parsed.line = std::move(line);
  return parsed;
}

}  // namespace rubato::agent
