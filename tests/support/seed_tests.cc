// Seeds torch's generator before every test. libtorch takes its default seed from the system's
// randomness, so without this a test on random tensors would draw others each time, and a rare
// failure could not be repeated.

#include <ATen/Context.h>
#include <gtest/gtest.h>

namespace {

class Seeder : public ::testing::EmptyTestEventListener {
  void OnTestStart(const ::testing::TestInfo&) override { at::manual_seed(20261123); }
};

// Appended when the program starts; gtest deletes it.
[[maybe_unused]] const bool appended = [] {
  ::testing::UnitTest::GetInstance()->listeners().Append(new Seeder);
  return true;
}();

}  // namespace
