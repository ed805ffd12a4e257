#include "comm/self_communicator.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/comm/communicator_cases.h"

namespace narrowgauge::comm {
namespace {

class SelfCommunicatorSuite : public ::testing::TestWithParam<CommunicatorCase> {};

TEST_P(SelfCommunicatorSuite, Case) {
  SelfCommunicator communicator;
  GetParam().run(communicator);
}

INSTANTIATE_TEST_SUITE_P(Cases, SelfCommunicatorSuite, ::testing::ValuesIn(communicator_cases()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace narrowgauge::comm
