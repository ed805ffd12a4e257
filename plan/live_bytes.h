#pragma once

#include <array>
#include <cstddef>
#include <string>

namespace narrowgauge::plan {

// What bytes are for.
enum class Kind : size_t {
  kParameters,   // this rank's shards, fp32
  kOptimizer,    // its moments
  kGathered,     // parameters as computed with: unsharded copies and the buffers of their gathering
  kGradients,    // whole or sharded, and the buffers of their reduction
  kActivations,  // kept from forward for backward
  kWorkspace,    // everything that lives within one operation or between two
  kProcess,      // of the program itself: code, libraries' buffers, the allocator
  kCount,
};

constexpr size_t kNumKinds = static_cast<size_t>(Kind::kCount);
const char* kind_name(Kind kind);  // "gradients"

struct Bytes {
  std::array<double, kNumKinds> of_kind{};

  double operator[](Kind kind) const { return of_kind[static_cast<size_t>(kind)]; }
  double total() const;
};

// Memory over the time of a step: what is taken and given back in order, and how it stood when most
// was in use.
class LiveBytes {
 public:
  void take(Kind kind, double bytes);
  // REQUIRES: that much of `kind` is taken.
  void give(Kind kind, double bytes);
  // Changes what bytes are for without touching the sum.
  void turn(Kind from, Kind into, double bytes);
  // Names what happens from now on ("backward of block 3").
  void enter(std::string moment) { moment_ = std::move(moment); }

  const Bytes& now() const { return now_; }
  const Bytes& peak() const { return peak_; }
  const std::string& peak_moment() const { return peak_moment_; }

 private:
  Bytes now_;
  Bytes peak_;
  std::string moment_;
  std::string peak_moment_;
};

}  // namespace narrowgauge::plan
