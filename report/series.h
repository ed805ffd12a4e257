#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

namespace narrowgauge::report {

// The course of one quantity over steps, held in a bounded number of buckets however many points
// are added. A bucket covers equally many steps and keeps what a chart shows of them: the least,
// the greatest, the mean and the last value. Not-finite values are counted, and their steps kept,
// apart.
class Series {
 public:
  struct Bucket {
    int64_t step = 0;  // of the last value
    double min = std::numeric_limits<double>::infinity();
    double max = -std::numeric_limits<double>::infinity();
    double last = 0;
    double sum = 0;
    int64_t count = 0;  // 0: empty, the rest means nothing

    // Within [min, max] also where the sum overflowed.
    double mean() const { return std::clamp(sum / static_cast<double>(count), min, max); }
    void merge(const Bucket& other);
  };

  // Buckets double their width whenever more than `max_buckets` of them would be needed.
  // REQUIRES: max_buckets >= 2 and even.
  explicit Series(size_t max_buckets = kDefaultBuckets) : max_buckets_(max_buckets) {}

  // Steps may come in any order (a log of a resumed run may step back); negative ones are ignored.
  void add(int64_t step, double value);

  std::vector<Bucket> buckets() const;  // those that hold something, by step
  bool empty() const { return num_finite_ == 0; }
  int64_t num_finite() const { return num_finite_; }
  int64_t num_not_finite() const { return num_not_finite_; }
  // The first of them, at most kMaxNotFiniteSteps.
  const std::vector<int64_t>& not_finite_steps() const { return not_finite_steps_; }

  // Of the finite values. REQUIRES: !empty().
  double min() const;
  double max() const;
  double last() const { return last_value_; }  // at the greatest step
  int64_t last_step() const { return last_step_; }
  // Whether a value that is not finite stands behind the last finite one.
  bool ends_not_finite() const { return last_not_finite_step_ > last_step_; }

  static constexpr size_t kDefaultBuckets = 2048;
  static constexpr size_t kMaxNotFiniteSteps = 64;

 private:
  void halve();

  size_t max_buckets_;
  int64_t width_ = 1;  // steps of a bucket
  std::vector<Bucket> buckets_;
  std::vector<int64_t> not_finite_steps_;
  int64_t num_finite_ = 0;
  int64_t num_not_finite_ = 0;
  int64_t last_step_ = -1;
  double last_value_ = 0;
  int64_t last_not_finite_step_ = -1;
};

}  // namespace narrowgauge::report
