#include "trainer/replica_check.h"

#include <ATen/ops/empty.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace narrowgauge::trainer {
namespace {

constexpr size_t kMaxNamed = 4;  // tensors in a message

int64_t hash_of(const at::Tensor& tensor) {
  const at::Tensor bytes = tensor.detach().contiguous().cpu();
  return std::bit_cast<int64_t>(XXH3_64bits(bytes.const_data_ptr(), bytes.nbytes()));
}

std::string ranks_text(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == ranks.size() ? " and " : ", ") + std::to_string(ranks[i]);
  }
  return text;
}

// How the ranks with these hashes differ in `name`; empty if they do not.
std::string difference(const std::string& name,
                       const std::vector<std::pair<int, int64_t>>& hashes) {
  std::map<int64_t, std::vector<int>> ranks_of;
  std::vector<int> all;
  for (const auto& [rank, hash] : hashes) {
    ranks_of[hash].push_back(rank);
    all.push_back(rank);
  }
  if (ranks_of.size() <= 1) {
    return "";
  }
  const auto most = std::max_element(ranks_of.begin(), ranks_of.end(), [](auto& a, auto& b) {
    return a.second.size() < b.second.size();
  });
  if (2 * most->second.size() <= all.size()) {
    return name + " differs between " + ranks_text(all);
  }
  std::vector<int> few;
  std::set_difference(all.begin(), all.end(), most->second.begin(), most->second.end(),
                      std::back_inserter(few));
  return name + " on " + ranks_text(few) + " differs from " + ranks_text(most->second);
}

}  // namespace

ReplicaCheck::ReplicaCheck(const comm::DeviceMesh& mesh, int64_t interval)
    : mesh_(mesh), interval_(interval) {}

void ReplicaCheck::check(int64_t step, const NamedBuffers& of_shard, const NamedBuffers& of_run) {
  const int world = mesh_.world().size();
  const int shards = mesh_.shard_axis().size();
  const auto num_of_shard = static_cast<int64_t>(of_shard.size());
  const int64_t num = num_of_shard + static_cast<int64_t>(of_run.size());
  const at::Tensor mine = at::empty({num}, at::kLong);
  auto* hash = mine.mutable_data_ptr<int64_t>();
  for (const auto& [name, tensor] : of_shard) {
    *hash++ = shards < world ? hash_of(tensor) : 0;  // without replicas there is nothing to compare
  }
  for (const auto& [name, tensor] : of_run) {
    *hash++ = hash_of(tensor);
  }
  const at::Tensor gathered = at::empty({world, num}, at::kLong);
  mesh_.world().all_gather(gathered, mine);
  const auto* hashes = gathered.const_data_ptr<int64_t>();
  std::vector<std::string> found;
  for (int64_t i = 0; i < num; ++i) {
    const bool is_sharded = i < num_of_shard;
    const auto& name = is_sharded ? of_shard[i].first : of_run[i - num_of_shard].first;
    for (int group = 0; group < (is_sharded ? shards : 1); ++group) {
      std::vector<std::pair<int, int64_t>> members;
      for (int rank = group; rank < world; rank += is_sharded ? shards : 1) {
        members.emplace_back(rank, hashes[rank * num + i]);
      }
      if (std::string text = difference(name, members); !text.empty()) {
        found.push_back(std::move(text));
      }
    }
  }
  if (found.empty()) {
    last_step_ = step;
    return;
  }
  std::string text = "step " + std::to_string(step) + ": state that ought to be equal is not: ";
  for (size_t i = 0; i < std::min(found.size(), kMaxNamed); ++i) {
    text += (i == 0 ? "" : "; ") + found[i];
  }
  if (found.size() > kMaxNamed) {
    text += "; and " + std::to_string(found.size() - kMaxNamed) + " more";
  }
  throw std::runtime_error(
      text + ". A processor, its memory or the network has changed bits without a word; " +
      (last_step_ < 0 ? "no earlier check has passed"
                      : "the check after step " + std::to_string(last_step_) +
                            " passed: go back there with checkpoint.load_step"));
}

}  // namespace narrowgauge::trainer
