// What each subcommand does. Each returns the exit code and has said on stderr, in one line, what
// went wrong.
#pragma once

#include "cli/command_line.h"

namespace rubato::cli {

int Up(const UpCommand& command);
int Down();
int Run(const RunCommand& command);  // `rubato profile -- PROGRAM` too.
int Top(const TopCommand& command);
int Status(const StatusCommand& command);
int Doctor(const DoctorCommand& command);
int ProfileShow(const ProfileShowCommand& command);
int ProfileClear();
int Version();

// "rubato <name>: <message>" on stderr.
void Complain(const char* name, const std::string& message);

}  // namespace rubato::cli
