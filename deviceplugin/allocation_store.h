// The allocations that containers may still use: durable records, and one socket directory each.
//
// A record outlives agent, kubelet and reboot, since the kubelet keeps mounting its directory
// without telling anybody. It ends only by Release(), which the agent calls when no pod is left
// that could mount it. A token is never used twice. Loop's thread; a thread of its own does the
// disk's work (make and remove directories, write the file, fsync), so that a slow disk delays an
// answer and nothing else. What it reads back it checks: a file that makes no sense is set aside,
// never fatal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "base/result.h"

namespace rubato::deviceplugin {

struct AllocationRecord {
  std::string token;               // 32 lower-case hexadecimal digits, random.
  uint64_t serial = 0;             // Newer ones are greater, on this node, forever.
  std::vector<std::string> slots;  // By GPU index, then slot number.
  std::vector<std::string> gpus;   // UUIDs, by index.
  std::string vendor;              // "nvidia", "amd", "software".
  uint32_t slots_per_gpu = 0;      // At the time: the share is slots.size() of this, per GPU.
  int64_t created_unix_ms = 0;     // Wall clock: for people, and for comparing with pods' times.
  // A later allocation has some of the slots: the kubelet gave them to another container, so this
  // one's has ended, or is an init container of the same pod (kubelets hand its slots on).
  bool superseded = false;
  // Host folders that the kubelet's answer names, beyond the socket directory: the installer of
  // shims keeps them.
  std::vector<std::string> host_folders;
  bool operator==(const AllocationRecord&) const = default;
};

class AllocationStore {
 public:
  struct Paths {
    std::string directory = "/var/lib/rubato/alloc";  // <token>/ below it.
    std::string records_file = "/var/lib/rubato/allocations.json";
  };
  // What Open() met. Worth a line in the log each, and a metric.
  struct Opening {
    size_t records = 0;
    std::string set_aside;                // Where an unreadable file was moved; empty: none was.
    std::string problem;                  // What was wrong with it.
    std::vector<std::string> remade;      // Tokens whose directory was missing.
    std::vector<std::string> unrecorded;  // Directories that no record names. They are kept.
  };
  using Added = std::function<void(base::Result<AllocationRecord>)>;
  using Done = std::function<void(base::Result<void>)>;

  // More are refused: nobody has called Release() for a long while.
  static constexpr size_t kMostRecords = 4096;

  // Reads the records (on the calling thread: main, before the loop runs) and makes what is
  // missing. Parents of both paths are made, too. Errors: a directory that cannot be made or read.
  // `loop` outlives the store.
  static base::Result<std::unique_ptr<AllocationStore>> Open(base::EventLoop* loop,
                                                             const Paths& paths);
  virtual ~AllocationStore() = default;

  virtual const Opening& opening() const = 0;

  // Gives `record` (slots, gpus, vendor, slots_per_gpu, host_folders are the caller's; the rest is
  // set here) a token, its directory and a durable place, then calls `added` from the loop. Other
  // records with some of these slots become superseded. Errors: kFull, kSystem.
  virtual void Add(AllocationRecord record, Added added) = 0;

  // Forgets the allocation and removes its directory with the socket in it. `done` comes from the
  // loop; kNotFound: no such token. The directory goes first, so that a crash in between leaves a
  // record, and with it a second chance, rather than an unrecorded directory.
  virtual void Release(const std::string& token, Done done) = 0;

  // nullptr: none. The pointer holds until the next call that is not const.
  virtual const AllocationRecord* Find(const std::string& token) const = 0;

  // Records of exactly these slots, in any order of the list; the newest first.
  virtual std::vector<AllocationRecord> OfSlots(const std::vector<std::string>& slots) const = 0;

  // By token.
  virtual const std::map<std::string, AllocationRecord>& records() const = 0;

  virtual std::string DirectoryOf(const std::string& token) const = 0;
};

// The text of a records file, and back. Text is checked: unknown keys are ignored; a wrong type, a
// bad token or another version is kInvalid.
std::string FormatRecords(const std::map<std::string, AllocationRecord>& records,
                          uint64_t next_serial);
struct ParsedRecords {
  std::map<std::string, AllocationRecord> records;
  uint64_t next_serial = 1;
};
base::Result<ParsedRecords> ParseRecords(const std::string& text);

// For other programs that must know what is allocated (the installer of shims). kNotFound: there is
// no file yet.
base::Result<ParsedRecords> ReadRecordsFile(const std::string& path);

bool IsToken(const std::string& text);

}  // namespace rubato::deviceplugin
