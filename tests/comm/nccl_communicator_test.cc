// What of NCCL and of CUDA streams can be seen without a GPU: the library is found and opened when
// it is wanted, and what is missing is said in a sentence. tests/gpu has the rest.

#include "comm/nccl_communicator.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>
#include <string>

#include "comm/cuda_stream.h"
#include "comm/nccl_library.h"
#include "comm/self_communicator.h"

namespace narrowgauge::comm {
namespace {

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

void expect_in(const std::string& text, const std::string& message) {
  EXPECT_NE(message.find(text), std::string::npos) << message;
}

TEST(NcclLibrary, IsFoundBesideLibtorch) {
  const auto nccl = NcclLibrary::load();
  int version = 0;
  ASSERT_EQ(nccl->get_version(&version), ncclSuccess);
  EXPECT_GE(version, NCCL_VERSION(2, 28, 0)) << "the header's version or a later one";
  expect_in("invalid argument", nccl->get_error_string(ncclInvalidArgument));
}

TEST(NcclLibrary, SaysWhatCannotBeLoaded) {
  const std::string message = message_of([] { NcclLibrary::load("/nowhere/libnccl.so.2"); });
  expect_in("cannot load NCCL: /nowhere/libnccl.so.2", message);
  expect_in("install the wheel nvidia-nccl-cu13", message);
}

TEST(NcclLibrary, SaysWhichFunctionALibraryLacks) {
  expect_in("NCCL lacks the function ncclGetVersion; install NCCL 2.28 or later",
            message_of([] { NcclLibrary::load("libm.so.6"); }));
}

TEST(NcclCommunicator, WantsACudaDeviceAndLibtorchsCudaHalf) {
  SelfCommunicator alone;
  expect_in("NCCL: expected a CUDA device with its index, got cpu",
            message_of([&] { NcclCommunicator::create(alone, c10::kCPU); }));
  expect_in("NCCL: expected a CUDA device with its index, got cuda",
            message_of([&] { NcclCommunicator::create(alone, c10::kCUDA); }));
  expect_in("NCCL: expected libtorch's CUDA half to be loaded",
            message_of([&] { NcclCommunicator::create(alone, c10::Device(c10::kCUDA, 0)); }));
}

TEST(CudaStream, WantsACudaDeviceAndLibtorchsCudaHalf) {
  expect_in("CudaStream: expected a CUDA device, got cpu",
            message_of([] { CudaStream stream(c10::kCPU); }));
  expect_in("CudaStream: expected libtorch's CUDA half to be loaded",
            message_of([] { CudaStream stream(c10::Device(c10::kCUDA, 0)); }));
}

}  // namespace
}  // namespace narrowgauge::comm
