#include "cli/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <limits>
#include <sstream>

#include "base/time.h"
#include "cli/byte_size.h"

namespace rubato::cli {
namespace {

constexpr const char* kDescription =
    "Shares one GPU between real-time and best-effort programs.\n"
    "Documentation of each command: rubato COMMAND --help";

constexpr const char* kRunFooter =
    "\nDurations: ns, us, ms, s (10ms). Sizes: KiB, MiB, GiB, KB, MB, GB, or bytes (20GiB).\n"
    "Exit code: the program's own; 128+N if signal N ended it; 125 if rubato itself failed, 126 "
    "if\n"
    "the program cannot be executed, 127 if there is no such program.\n"
    "\n"
    "  rubato run --class realtime --period 10ms -- python3 serve.py\n"
    "  rubato run --class best-effort --memory 20GiB -- python3 train.py";

constexpr const char* kProfileFooter =
    "\nThe program runs as a best-effort tenant, alone on the GPU: it is an error if other "
    "tenants'\nprograms run. Exit code: as of rubato run.\n"
    "\n"
    "  rubato profile -- python3 train.py --steps 50";

[[noreturn]] void Refuse(const std::string& option, const std::string& message) {
  throw CLI::ValidationError(option, message);
}

void AddDuration(CLI::App* app, const std::string& option, uint64_t* value_ns,
                 const std::string& help) {
  app->add_option_function<std::string>(
         option,
         [option, value_ns](const std::string& text) {
           const base::Result<base::Nanos> parsed = base::ParseDuration(text);
           if (!parsed.ok()) Refuse(option, parsed.error().message);
           if (*parsed <= 0) Refuse(option, "'" + text + "' is no time; write more than zero");
           *value_ns = static_cast<uint64_t>(*parsed);
         },
         help)
      ->type_name("TIME");
}

void AddMode(CLI::App* app, Mode* mode, bool* given, const std::string& help) {
  app->add_option_function<std::string>(
         "--mode",
         [mode, given](const std::string& text) {
           for (const Mode known : {Mode::kTimeslice, Mode::kHybrid, Mode::kMps}) {
             if (text == NameOf(known)) {
               *mode = known;
               if (given != nullptr) *given = true;
               return;
             }
           }
           Refuse("--mode", "unknown mode '" + text + "'; use timeslice, hybrid or mps");
         },
         help)
      ->type_name("MODE");
}

void AddOutput(CLI::App* app, Output* output) {
  app->add_option_function<std::string>(
         "--output,-o",
         [output](const std::string& text) {
           if (text == "table") {
             *output = Output::kTable;
           } else if (text == "json") {
             *output = Output::kJson;
           } else {
             Refuse("--output", "unknown form '" + text + "'; use table or json");
           }
         },
         "table (default) or json")
      ->type_name("FORM");
}

void AddCount(CLI::App* app, const std::string& option, uint32_t* value, uint32_t most,
              const std::string& help) {
  app->add_option_function<std::string>(
         option,
         [option, value, most](const std::string& text) {
           const bool digits =
               !text.empty() && text.size() <= 9 &&
               std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
           const uint64_t number = digits ? std::stoull(text) : 0;
           if (number == 0 || number > most) {
             Refuse(option, "'" + text + "' is not a number from 1 to " + std::to_string(most) +
                                "; write one");
           }
           *value = static_cast<uint32_t>(number);
         },
         help)
      ->type_name("N");
}

void AddStart(CLI::App* app, StartOptions* start) {
  app->add_option("--metrics-address", start->metrics_address,
                  "host:port of the metrics (default 127.0.0.1:9412), or none")
      ->type_name("ADDRESS")
      ->envname("RUBATO_METRICS_ADDRESS");
  AddCount(
      app, "--time-dilation", &start->time_dilation, 1000,
      "how much slower than real the software GPU runs (default: RUBATO_TIME_DILATION, else 1)");
}

std::string Joined(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text;
}

// What the parser could not place: the option if there is one, otherwise the first word.
std::string Surplus(const std::string& command, const std::vector<std::string>& words) {
  const auto option = std::find_if(words.begin(), words.end(),
                                   [](const std::string& word) { return word.starts_with("-"); });
  if (option != words.end())
    return "there is no option " + *option + "; see `" + command + " --help`";
  if (command == "rubato run" || command == "rubato profile") {
    return "'" + words.front() + "' stands before --; write the program and its arguments after it";
  }
  if (command == "rubato")
    return "there is no command '" + words.front() + "'; see `rubato --help`";
  return "'" + words.front() + "' is too much; see `" + command + " --help`";
}

// One line from what the parser says; "see --help" where it does not say what to do.
std::string Complaint(const std::string& command, const CLI::ParseError& error) {
  std::string what = Joined(error.what());
  if (!what.empty() && what.back() == '.') what.pop_back();
  if (what.find(';') == std::string::npos) what += "; see `" + command + " --help`";
  return command + ": " + what + "\n";
}

Ending RunRefusal(const std::string& message, const std::string& command = "rubato run") {
  return Ending{kExitRunFailed, "", command + ": " + message + "\n"};
}

}  // namespace

const char* NameOf(Mode mode) {
  switch (mode) {
    case Mode::kTimeslice:
      return "timeslice";
    case Mode::kHybrid:
      return "hybrid";
    case Mode::kMps:
      return "mps";
  }
  return "unknown";
}

const char* NameOf(TenantClass tenant_class) {
  return tenant_class == TenantClass::kRealtime ? "realtime" : "best-effort";
}

std::variant<Command, Ending> ParseCommandLine(const std::vector<std::string>& arguments) {
  // What follows the first "--" belongs to the program that is run (or to the scheduler): it is
  // cut off before anything could take it for ours.
  const auto dashes = std::find(arguments.begin(), arguments.end(), "--");
  std::vector<std::string> own(arguments.begin(), dashes);
  const std::vector<std::string> rest(dashes == arguments.end() ? dashes : dashes + 1,
                                      arguments.end());

  CLI::App app(kDescription, "rubato");
  app.require_subcommand(0, 1);
  bool version = false;
  app.add_flag("--version", version, "print the version and end");

  UpCommand up;
  CLI::App* up_app = app.add_subcommand("up", "start a scheduler in the background");
  AddMode(up_app, &up.start.mode, &up.start.mode_given, "timeslice (default), hybrid or mps");
  AddStart(up_app, &up.start);
  up_app->add_flag("--foreground", up.foreground, "stay until the scheduler ends; log to stderr");
  up_app->footer("\nWhat follows -- goes to rubato-scheduler (see rubato-scheduler --help).");

  CLI::App* down_app =
      app.add_subcommand("down", "stop the scheduler; programs that it served run on");

  RunCommand run;
  CLI::App* run_app = app.add_subcommand(
      "run", "run a program as a tenant of the GPU: rubato run [OPTIONS] -- PROGRAM [ARGUMENT...]");
  run_app
      ->add_option_function<std::string>(
          "--class",
          [&run](const std::string& text) {
            if (text == NameOf(TenantClass::kRealtime)) {
              run.tenant_class = TenantClass::kRealtime;
            } else if (text == NameOf(TenantClass::kBestEffort)) {
              run.tenant_class = TenantClass::kBestEffort;
            } else {
              Refuse("--class", "unknown class '" + text + "'; use realtime or best-effort");
            }
          },
          "realtime or best-effort (default)")
      ->type_name("CLASS");
  AddDuration(run_app, "--period", &run.period_ns,
              "time from one release to the next (real-time; learnt if not given)");
  AddDuration(run_app, "--deadline", &run.deadline_ns,
              "when a job must be done, after its release (real-time; default: the period)");
  run_app
      ->add_option_function<std::string>(
          "--memory",
          [&run](const std::string& text) {
            const base::Result<uint64_t> parsed = ParseByteSize(text);
            if (!parsed.ok()) Refuse("--memory", parsed.error().message);
            run.limit_bytes = *parsed;
          },
          "limit of GPU memory, for all processes of the program together")
      ->type_name("SIZE");
  run_app->add_option("--name", run.name, "name in tables and metrics (default: the program's)");
  AddCount(run_app, "--weight", &run.weight, 1000, "share among best-effort tenants (default 1)");
  run_app->add_flag("--require-class", run.require_class,
                    "fail if real-time is not granted, instead of running as best-effort");
  AddMode(run_app, &run.start.mode, &run.start.mode_given,
          "mode of the scheduler, if none runs yet and it is started here");
  AddStart(run_app, &run.start);
  bool no_gpu_check = false;
  run_app->add_flag("--no-gpu-check", no_gpu_check, "run the program even if no GPU driver loads");
  run_app->footer(kRunFooter);

  RunCommand profile;
  profile.profile = true;
  ProfileShowCommand show;
  CLI::App* profile_app = app.add_subcommand(
      "profile",
      "measure a program's kernels for later starts: rubato profile [OPTIONS] -- PROGRAM "
      "[ARGUMENT...]");
  profile_app->require_subcommand(0, 1);
  profile_app->add_option("--name", profile.name,
                          "name in tables and metrics (default: the program's)");
  AddMode(profile_app, &profile.start.mode, &profile.start.mode_given,
          "mode of the scheduler, if none runs yet and it is started here");
  AddStart(profile_app, &profile.start);
  bool no_profile_gpu_check = false;
  profile_app->add_flag("--no-gpu-check", no_profile_gpu_check,
                        "run the program even if no GPU driver loads");
  profile_app->footer(kProfileFooter);
  CLI::App* show_app =
      profile_app->add_subcommand("show", "list what is known about kernels, the longest first");
  AddOutput(show_app, &show.output);
  AddCount(show_app, "--limit", &show.limit, 10'000, "so many of them (default 100)");
  CLI::App* clear_app = profile_app->add_subcommand("clear", "forget all of it");

  TopCommand top;
  CLI::App* top_app = app.add_subcommand("top", "show the tenants, live (q ends)");
  AddDuration(top_app, "--interval", &top.interval_ns, "time between two looks (default 1s)");
  top_app->add_flag("--once", top.once, "print one table and end");

  StatusCommand status;
  CLI::App* status_app = app.add_subcommand("status", "show what the scheduler knows");
  AddOutput(status_app, &status.output);

  DoctorCommand doctor;
  CLI::App* doctor_app = app.add_subcommand("doctor", "check what this machine needs, name cures");
  AddOutput(doctor_app, &doctor.output);
  AddMode(doctor_app, &doctor.mode, nullptr, "also check what this mode needs");

  CLI::App* version_app = app.add_subcommand("version", "print the version");

  std::string command = "rubato";
  const bool is_run = !own.empty() && (own.front() == "run" || own.front() == "profile");
  for (const CLI::App* known : app.get_subcommands(nullptr)) {
    if (!own.empty() && known->get_name() == own.front()) command += " " + own.front();
  }

  std::vector<std::string> reversed(own.rbegin(), own.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::ExtrasError&) {
    return Ending{is_run ? kExitRunFailed : kExitUsage, "",
                  command + ": " + Surplus(command, app.remaining(/*recurse=*/true)) + "\n"};
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) {
      return Ending{is_run ? kExitRunFailed : kExitUsage, "", Complaint(command, error)};
    }
    std::ostringstream out;
    std::ostringstream err;
    (void)app.exit(error, out, err);
    return Ending{0, out.str(), err.str()};
  }

  if (version || version_app->parsed()) return Command(VersionCommand{});
  const bool profile_run = profile_app->parsed() && !show_app->parsed() && !clear_app->parsed();
  if (!rest.empty() && !run_app->parsed() && !up_app->parsed() && !profile_run) {
    return Ending{kExitUsage, "", command + ": takes nothing after --; leave it out\n"};
  }
  if (up_app->parsed()) {
    up.start.extra = rest;
    return Command(up);
  }
  if (down_app->parsed()) return Command(DownCommand{});
  if (top_app->parsed()) return Command(top);
  if (status_app->parsed()) return Command(status);
  if (doctor_app->parsed()) return Command(doctor);
  if (show_app->parsed()) return Command(show);
  if (clear_app->parsed()) return Command(ProfileClearCommand{});
  if (profile_run) {
    if (rest.empty()) {
      return RunRefusal(
          "no program was given; write it after --, for example `rubato profile -- ./a.out`, or "
          "see "
          "`rubato profile show`",
          command);
    }
    profile.gpu_check = !no_profile_gpu_check;
    profile.argv = rest;
    return Command(profile);
  }
  if (!run_app->parsed()) return Ending{kExitUsage, "", app.help()};

  if (rest.empty()) {
    return RunRefusal(
        "no program was given; write it after --, for example `rubato run -- ./a.out`");
  }
  if (run.tenant_class == TenantClass::kBestEffort) {
    for (const char* option : {"--period", "--deadline"}) {
      if (run_app->count(option) != 0) {
        return RunRefusal(std::string(option) +
                          " is for real-time programs; leave it out, or add --class realtime");
      }
    }
    if (run.require_class)
      return RunRefusal("--require-class is for real-time programs; leave it out");
  } else if (run.weight != 0) {
    return RunRefusal("--weight is for best-effort programs; leave it out");
  }
  run.gpu_check = !no_gpu_check;
  run.argv = rest;
  return Command(run);
}

}  // namespace rubato::cli
