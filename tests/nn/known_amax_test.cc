#include "nn/known_amax.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <thread>

namespace narrowgauge::nn {
namespace {

at::Tensor three() { return at::full({}, 3.0); }

TEST(KnownAmax, IsTakenOnce) {
  const at::Tensor x = at::ones({4, 6});
  set_known_amax(x, three());
  EXPECT_EQ(take_known_amax(x).item<float>(), 3.0F);
  EXPECT_FALSE(take_known_amax(x).defined());
}

TEST(KnownAmax, IsThatOfViewsOfTheWhole) {
  const at::Tensor x = at::ones({4, 6}).requires_grad_();
  const at::Tensor y = x.mul(2);
  set_known_amax(y, three());
  EXPECT_TRUE(take_known_amax(y.view({2, 12}).detach().contiguous()).defined());
}

TEST(KnownAmax, IsNotThatOfAPartNorOfATranspose) {
  const at::Tensor x = at::ones({4, 6});
  set_known_amax(x, three());
  EXPECT_FALSE(take_known_amax(x.narrow(0, 0, 2)).defined());
  EXPECT_FALSE(take_known_amax(x.narrow(0, 2, 2)).defined());
  EXPECT_FALSE(take_known_amax(x.t()).defined());
  EXPECT_FALSE(take_known_amax(x.clone()).defined());
  EXPECT_TRUE(take_known_amax(x).defined());
}

TEST(KnownAmax, EndsWithAWriteThroughAnyView) {
  const at::Tensor x = at::ones({4, 6});
  set_known_amax(x, three());
  x.view({24}).narrow(0, 0, 1).mul_(100);
  EXPECT_FALSE(take_known_amax(x).defined());
}

TEST(KnownAmax, EndsWithTheTensor) {
  const void* freed = nullptr;
  {
    const at::Tensor x = at::ones({4, 6});
    freed = x.const_data_ptr();
    set_known_amax(x, three());
  }
  at::Tensor same;
  for (int i = 0; i < 100 && (!same.defined() || same.const_data_ptr() != freed); ++i) {
    same = at::Tensor();
    same = at::ones({4, 6});  // allocators give the address again
  }
  EXPECT_FALSE(take_known_amax(same).defined());
}

TEST(KnownAmax, TheLastOneCounts) {
  const at::Tensor x = at::ones({4, 6});
  const at::Tensor y = at::ones({4, 6});
  set_known_amax(x, three());
  set_known_amax(y, three());
  EXPECT_FALSE(take_known_amax(x).defined());
  EXPECT_TRUE(take_known_amax(y).defined());
}

TEST(KnownAmax, StaysWithItsThread) {
  const at::Tensor x = at::ones({4, 6});
  set_known_amax(x, three());
  bool elsewhere = true;
  std::thread([&] { elsewhere = take_known_amax(x).defined(); }).join();
  EXPECT_FALSE(elsewhere);
  EXPECT_TRUE(take_known_amax(x).defined());
}

}  // namespace
}  // namespace narrowgauge::nn
