#include "comm/metered_stream.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>

namespace narrowgauge::comm {
namespace {

void sleep_for(int milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

TEST(MeteredStream, TellsHiddenTimeFromWaitedTime) {
  MeteredStream stream(std::make_shared<ThreadStream>());
  const auto work = stream.run([] { sleep_for(60); });
  sleep_for(40);  // hides most of it
  work->wait();
  const StreamTime time = stream.time();
  EXPECT_GE(time.running_seconds, 0.060);
  EXPECT_GT(time.waited_seconds, 0.0);
  EXPECT_LT(time.waited_seconds, time.running_seconds);
  work->wait();  // at once
  EXPECT_LT(stream.time().waited_seconds, time.waited_seconds + 0.01);
  EXPECT_EQ(stream.time().running_seconds, time.running_seconds);
}

TEST(MeteredStream, CountsPiecesThatThrowAndWorkOutlivesIt) {
  auto stream = std::make_unique<MeteredStream>(std::make_shared<ThreadStream>());
  const auto failing = stream->run([] {
    sleep_for(5);
    throw std::runtime_error("cut off");
  });
  EXPECT_THROW(failing->wait(), std::runtime_error);
  EXPECT_GE(stream->time().running_seconds, 0.005);
  stream.reset();
  EXPECT_THROW(failing->wait(), std::runtime_error);
}

}  // namespace
}  // namespace narrowgauge::comm
