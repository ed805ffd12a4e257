#include "checkpoint/latest_checkpoint.h"

#include <algorithm>
#include <exception>
#include <sstream>

#include "checkpoint/checkpoint_reader.h"
#include "checkpoint/checkpoint_store.h"
#include "checkpoint/rank_agreement.h"

namespace narrowgauge::checkpoint {
namespace {

namespace fs = std::filesystem;

// Their names as rank 0 sees them: another host may see a file system a little later.
std::vector<std::string> candidate_names(const fs::path& store, comm::Communicator& communicator) {
  const auto texts = on_all_ranks(communicator, [&] {
    std::string names;
    if (communicator.rank() == 0) {
      for (const fs::path& folder : list_checkpoints(store)) {
        names += folder.filename().string() + "\n";
      }
    }
    return names;
  });
  std::vector<std::string> names;
  std::istringstream lines(texts.front());
  for (std::string name; std::getline(lines, name);) {
    names.push_back(name);
  }
  return names;
}

}  // namespace

LatestCheckpoint find_latest_checkpoint(
    const fs::path& store, comm::Communicator& communicator,
    const std::function<void(const std::string&, double)>& progress) {
  LatestCheckpoint result;
  for (const std::string& name : candidate_names(store, communicator)) {
    try {
      on_all_ranks(communicator, [&] {
        CheckpointReader reader = CheckpointReader::open(store / name);
        const uint64_t share = size_bytes(reader.manifest()) / communicator.size();
        reader.verify(communicator.rank(), communicator.size(), [&](uint64_t bytes) {
          if (progress) {
            progress(name,
                     std::min(1.0, static_cast<double>(bytes) / static_cast<double>(share + 1)));
          }
        });
        return std::string();
      });
      result.folder = store / name;
      return result;
    } catch (const comm::CommunicatorAborted&) {
      throw;
    } catch (const std::exception& error) {
      result.warnings.push_back("checkpoint " + name +
                                " is damaged and passed over: " + error.what());
    }
  }
  return result;
}

}  // namespace narrowgauge::checkpoint
