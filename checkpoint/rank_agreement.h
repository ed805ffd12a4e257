#pragma once

#include <functional>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace narrowgauge::checkpoint {

// Every rank's `text`, in rank order. Collective; the texts may differ in length.
std::vector<std::string> all_gather_text(comm::Communicator& communicator, const std::string& text);

// Runs `work` on every rank and gathers what it returns. Where it throws on one, every rank throws
// after all have ended: the failing rank its own exception, the others std::runtime_error with the
// lowest failing rank and its reason. So no rank goes on alone or waits for ever.
std::vector<std::string> on_all_ranks(comm::Communicator& communicator,
                                      const std::function<std::string()>& work);

}  // namespace narrowgauge::checkpoint
