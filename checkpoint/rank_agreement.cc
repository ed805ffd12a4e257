#include "checkpoint/rank_agreement.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <stdexcept>

namespace narrowgauge::checkpoint {

std::vector<std::string> all_gather_text(comm::Communicator& communicator,
                                         const std::string& text) {
  const int size = communicator.size();
  const at::Tensor length = at::empty({1}, at::kLong).fill_(static_cast<int64_t>(text.size()));
  const at::Tensor lengths = at::empty({size}, at::kLong);
  communicator.all_gather(lengths, length);
  const int64_t longest = std::max<int64_t>(lengths.max().item<int64_t>(), 1);
  const at::Tensor padded = at::zeros({longest}, at::kByte);
  std::memcpy(padded.mutable_data_ptr(), text.data(), text.size());
  const at::Tensor gathered = at::empty({size, longest}, at::kByte);
  communicator.all_gather(gathered, padded);
  std::vector<std::string> texts;
  for (int rank = 0; rank < size; ++rank) {
    const char* begin = static_cast<const char*>(gathered.const_data_ptr()) + rank * longest;
    texts.emplace_back(begin, lengths[rank].item<int64_t>());
  }
  return texts;
}

std::vector<std::string> on_all_ranks(comm::Communicator& communicator,
                                      const std::function<std::string()>& work) {
  constexpr char kDone = '+';
  constexpr char kFailed = '-';
  std::string message(1, kFailed);
  std::exception_ptr failure;
  try {
    message = kDone + work();
  } catch (const c10::Error& error) {
    failure = std::current_exception();
    message += error.what_without_backtrace();
  } catch (const std::exception& error) {
    failure = std::current_exception();
    message += error.what();
  }
  std::vector<std::string> texts = all_gather_text(communicator, message);
  if (failure) {
    std::rethrow_exception(failure);
  }
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    const std::string reason = texts[rank].substr(1);
    if (texts[rank][0] == kFailed) {
      throw std::runtime_error("rank " + std::to_string(rank) + ": " + reason);
    }
    texts[rank] = reason;
  }
  return texts;
}

}  // namespace narrowgauge::checkpoint
