#include "fsdp/comm_streams.h"

#include "comm/cuda_stream.h"

namespace narrowgauge::fsdp {

void CommStreams::drain() const {
  for (const auto& stream : {all_gather_copy_in, all_gather, reduce_scatter, all_reduce}) {
    stream->run([] {})->wait();
  }
}

CommStreams CommStreams::shared(std::shared_ptr<comm::Stream> stream, bool asynchronous) {
  return {stream, stream, stream, stream, asynchronous};
}

CommStreams CommStreams::inline_streams() {
  return shared(std::make_shared<comm::InlineStream>(), false);
}

CommStreams CommStreams::thread_stream() {
  return shared(std::make_shared<comm::ThreadStream>(), true);
}

CommStreams CommStreams::cuda_streams(const c10::Device& device) {
  const auto stream = [&] { return std::make_shared<comm::CudaStream>(device); };
  const auto of_shard_axis = stream();
  return {stream(), of_shard_axis, of_shard_axis, stream(), true};
}

CommStreams CommStreams::beside(const c10::Device& device) {
  return device.is_cpu()    ? thread_stream()
         : device.is_cuda() ? cuda_streams(device)
                            : inline_streams();
}

}  // namespace narrowgauge::fsdp
