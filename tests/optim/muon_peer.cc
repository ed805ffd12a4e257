// Runs Muon over raw fp32 files, for muon_torch_test.py:
//   muon_peer DIR RANKS STEPS LR WEIGHT_DECAY MOMENTUM NESTEROV ADJUST ROWSxCOLUMNS...
// ADJUST: original or match_rms_adamw. DIR holds p<i>.bin and g<i>_<step>.bin (step from 1); writes
// out_p<i>.bin and out_m<i>.bin.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

#include "optim/muon.h"
#include "tests/support/run_ranks.h"

namespace narrowgauge::optim {
namespace {

namespace fs = std::filesystem;

at::Tensor read(const fs::path& path, const std::vector<int64_t>& sizes) {
  at::Tensor tensor = at::empty(sizes, at::kFloat);
  std::ifstream file(path, std::ios::binary);
  if (!file.read(static_cast<char*>(tensor.mutable_data_ptr()),
                 static_cast<std::streamsize>(tensor.nbytes()))) {
    throw std::runtime_error("expected " + std::to_string(tensor.nbytes()) + " bytes in " +
                             path.string());
  }
  return tensor;
}

// Each rank writes its rows into the file of the whole.
void write_rows(const fs::path& path, const at::Tensor& rows, int64_t row_begin) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(row_begin * rows.size(1) * 4);
  file.write(static_cast<const char*>(rows.const_data_ptr()),
             static_cast<std::streamsize>(rows.nbytes()));
  if (!file.flush()) {
    throw std::runtime_error("can not write " + path.string());
  }
}

void run_rank(comm::Communicator& communicator, int argc, char** argv) {
  const fs::path dir = argv[1];
  const MuonOptions options = {.momentum = std::atof(argv[6]),
                               .nesterov = std::string(argv[7]) == "1",
                               .adjust_lr = std::string(argv[8]) == "original"
                                                ? AdjustLr::kOriginal
                                                : AdjustLr::kMatchRmsAdamW};
  ParameterGroup group;
  group.weight_decay = std::atof(argv[5]);
  const auto rows_here = [&](const at::Tensor& whole) {
    const int64_t chunk = (whole.size(0) + communicator.size() - 1) / communicator.size();
    const int64_t begin = std::min(whole.size(0), chunk * communicator.rank());
    return whole.narrow(0, begin, std::min(whole.size(0), begin + chunk) - begin).clone();
  };
  std::vector<std::vector<int64_t>> sizes;
  for (int i = 9; i < argc; ++i) {
    const std::string text = argv[i];
    const size_t x = text.find('x');
    sizes.push_back({std::stoll(text.substr(0, x)), std::stoll(text.substr(x + 1))});
    const std::string name = std::to_string(i - 9);
    const int64_t chunk = (sizes.back()[0] + communicator.size() - 1) / communicator.size();
    group.names.push_back(name);
    group.params.push_back(rows_here(read(dir / ("p" + name + ".bin"), sizes.back())));
    group.shards.push_back({sizes.back(), std::min(sizes.back()[0], chunk * communicator.rank())});
  }
  const ParameterGroup kept = group;
  Muon optimizer({group}, options, &communicator);
  for (int step = 1; step <= std::atoi(argv[3]); ++step) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      const std::string name = "g" + std::to_string(i) + "_" + std::to_string(step) + ".bin";
      kept.params[i].mutable_grad() = rows_here(read(dir / name, sizes[i]));
    }
    optimizer.step(std::atof(argv[4]));
  }
  for (size_t i = 0; i < sizes.size(); ++i) {
    write_rows(dir / ("out_p" + std::to_string(i) + ".bin"), kept.params[i],
               kept.shards[i].row_begin);
  }
  for (const StateTensor& state : optimizer.state()) {
    const std::string name = state.name.substr(0, state.name.find('.'));
    write_rows(dir / ("out_m" + name + ".bin"), state.local, state.row_begin);
  }
}

}  // namespace
}  // namespace narrowgauge::optim

int main(int argc, char** argv) {
  if (argc < 10) {
    std::cerr << "expected 9 arguments or more, got " << argc - 1 << "\n";
    return 2;
  }
  at::set_num_threads(1);
  for (int i = 9; i < argc; ++i) {
    for (const char* kind : {"p", "m"}) {
      std::ofstream(std::filesystem::path(argv[1]) /
                    (std::string("out_") + kind + std::to_string(i - 9) + ".bin"));
    }
  }
  narrowgauge::testing::run_ranks(std::atoi(argv[2]),
                                  [&](narrowgauge::comm::Communicator& communicator) {
                                    narrowgauge::optim::run_rank(communicator, argc, argv);
                                  });
  return 0;
}
