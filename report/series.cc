#include "report/series.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace narrowgauge::report {

void Series::Bucket::merge(const Bucket& other) {
  if (other.count == 0) {
    return;
  }
  if (count == 0 || other.step >= step) {
    step = other.step;
    last = other.last;
  }
  min = std::min(min, other.min);
  max = std::max(max, other.max);
  sum += other.sum;
  count += other.count;
}

void Series::add(int64_t step, double value) {
  if (step < 0) {
    return;
  }
  if (!std::isfinite(value)) {
    ++num_not_finite_;
    last_not_finite_step_ = std::max(last_not_finite_step_, step);
    if (not_finite_steps_.size() < kMaxNotFiniteSteps) {
      not_finite_steps_.push_back(step);
    }
    return;
  }
  while (static_cast<uint64_t>(step / width_) >= max_buckets_) {
    halve();
  }
  const auto index = static_cast<size_t>(step / width_);
  if (index >= buckets_.size()) {
    buckets_.resize(index + 1);
  }
  buckets_[index].merge({step, value, value, value, value, 1});
  ++num_finite_;
  if (step >= last_step_) {
    last_step_ = step;
    last_value_ = value;
  }
}

void Series::halve() {
  for (size_t i = 0; i < buckets_.size(); i += 2) {
    Bucket pair = buckets_[i];
    if (i + 1 < buckets_.size()) {
      pair.merge(buckets_[i + 1]);
    }
    buckets_[i / 2] = pair;
  }
  buckets_.resize((buckets_.size() + 1) / 2);
  width_ *= 2;
}

std::vector<Series::Bucket> Series::buckets() const {
  std::vector<Bucket> filled;
  std::copy_if(buckets_.begin(), buckets_.end(), std::back_inserter(filled),
               [](const Bucket& bucket) { return bucket.count > 0; });
  return filled;
}

double Series::min() const {
  double least = std::numeric_limits<double>::infinity();
  for (const Bucket& bucket : buckets_) {
    least = std::min(least, bucket.min);
  }
  return least;
}

double Series::max() const {
  double greatest = -std::numeric_limits<double>::infinity();
  for (const Bucket& bucket : buckets_) {
    greatest = std::max(greatest, bucket.max);
  }
  return greatest;
}

}  // namespace narrowgauge::report
