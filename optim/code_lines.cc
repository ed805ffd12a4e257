#include "optim/code_lines.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <utility>
#include <vector>

// A rank's boundary is the least magnitude that has it. Where the boundaries of neighbouring ranks
// are evenly spaced, they lie on one line, a run; runs and the segments that join them are a
// concave function, so the least of the lines is right in each part. A last value that is nearer
// than its run has them (1 in the dynamic tree) breaks that, and has a line of its own, the peak.

namespace narrowgauge::optim {
namespace {

using kernels::CodeLines;
using kernels::kCodeLines;
using kernels::kCodeLinesOne;

constexpr double kEvenly = 1e-4;  // relative difference of spacings, of rounded fp32
// What the lines may use of the kernel's margin; the rest is for 1 / scale in place of a division.
constexpr float kMargin = 0.5F * kernels::kCodeLinesMargin;
constexpr size_t kOctaves = 32;

uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

// Boundaries of ranks 1, 2, ... by rank; index 0 is 0.
using Boundaries = std::vector<float>;

Boundaries find_boundaries(const std::function<int(float)>& rank, float largest) {
  Boundaries boundaries = {0.0F};
  const int last = rank(largest);
  for (int r = 1; r <= last; ++r) {
    uint32_t low = bits_of(boundaries.back());
    for (uint32_t high = bits_of(largest); low < high;) {
      const uint32_t middle = low + (high - low) / 2;
      if (rank(float_of(middle)) < r) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    boundaries.push_back(float_of(low));
  }
  return boundaries;
}

struct Line {
  double slope;
  double offset;
};

Line through(const Boundaries& boundaries, size_t a, size_t b) {
  const double slope = static_cast<double>(b - a) / (double{boundaries[b]} - double{boundaries[a]});
  return {slope, static_cast<double>(a) - slope * double{boundaries[a]}};
}

bool is_even(const Boundaries& boundaries, size_t a, size_t b) {
  const double first = double{boundaries[a + 1]} - double{boundaries[a]};
  const double last = double{boundaries[b]} - double{boundaries[b - 1]};
  return std::fabs(first - last) <= kEvenly * first;
}

bool has_peak(const Boundaries& boundaries) {
  const size_t last = boundaries.size() - 1;
  return boundaries[last] - boundaries[last - 1] < boundaries[last - 1] - boundaries[last - 2] &&
         !is_even(boundaries, last - 2, last);
}

// Through the last boundary, so steep that it is below all ranks before, and yet no rank too high
// at the largest value.
Line peak_of(const Boundaries& boundaries, float largest) {
  const double last = boundaries.back();
  const auto rank = static_cast<double>(boundaries.size() - 1);
  const double slope = std::sqrt(rank / last / (double{largest} - last));
  return {slope, rank - slope * last};
}

// Lines through the boundaries of [begin, end) and the one behind, if there is one; not the peak.
std::vector<Line> lines_of(const Boundaries& boundaries, float begin, float end) {
  const size_t last_rank = boundaries.size() - (has_peak(boundaries) ? 2 : 1);
  const auto at_or_above = [&](float x) {
    return static_cast<size_t>(std::lower_bound(boundaries.begin() + 1, boundaries.end(), x) -
                               boundaries.begin());
  };
  const size_t stop = std::min(at_or_above(end), last_rank);
  std::vector<Line> lines;
  for (size_t from = at_or_above(begin); from <= stop;) {
    size_t to = from;
    while (to < stop && is_even(boundaries, from, to + 1)) {
      ++to;
    }
    lines.push_back(to > from ? through(boundaries, from, to)
                              : through(boundaries, from - 1, from));
    from = to + 1;
  }
  const double beyond = static_cast<double>(boundaries.size()) - 0.5;
  return lines.empty() ? std::vector<Line>{{0.0, beyond}} : lines;
}

// As the kernel computes it.
float fixed_rank(const CodeLines& lines, float y) {
  const size_t octave = bits_of(y) >> 23 & (kOctaves - 1);
  float least = INFINITY;
  for (int k = 0; k < kCodeLines; ++k) {
    least = std::min(least, std::fma(lines.slope[k][octave], y, lines.offset[k][octave]));
  }
  return std::max(least, std::fma(lines.peak_slope, y, lines.peak_offset));
}

// Right or close at every magnitude from the smallest to the largest: within an octave, where the
// lines are monotone, it is enough to look around each boundary and at the ends.
void check_lines(const CodeLines& lines, const Boundaries& boundaries, float largest) {
  const auto check = [&](float y, float low, float high) {
    const float value = fixed_rank(lines, y);
    if (!(value >= low - kMargin && value <= high + kMargin)) {
      throw std::logic_error("the lines of a codebook do not fit it at " + std::to_string(y));
    }
  };
  for (size_t rank = 1; rank < boundaries.size(); ++rank) {
    const auto exact = static_cast<float>(rank) * kCodeLinesOne;
    check(boundaries[rank], exact, exact);
    check(float_of(bits_of(boundaries[rank]) - 1), exact, exact);
  }
  const auto check_end = [&](float y) {
    const auto rank = static_cast<float>(std::upper_bound(boundaries.begin(), boundaries.end(), y) -
                                         boundaries.begin() - 1);
    check(y, rank * kCodeLinesOne, (rank + 1.0F) * kCodeLinesOne);
  };
  check_end(lines.smallest);
  check_end(largest);
  for (uint32_t octave = (bits_of(lines.smallest) >> 23) + 1; octave <= bits_of(largest) >> 23;
       ++octave) {
    check_end(float_of(octave << 23));
    check_end(float_of((octave << 23) - 1));
  }
}

}  // namespace

CodeLines make_code_lines(const std::function<uint8_t(float)>& encode, float largest,
                          const CodeSigns& signs) {
  CodeLines result;
  result.is_signed = signs.is_signed;
  result.zero = signs.zero;
  result.negative_base = signs.negative_base;
  result.negative_flip = signs.negative_flip;
  const Boundaries boundaries =
      find_boundaries([&](float x) { return encode(x) - signs.zero; }, largest);
  // Well between rank 0's ends.
  result.smallest = 0.75F * boundaries[1];
  const uint32_t first = bits_of(result.smallest) >> 23;
  const uint32_t last = (bits_of(largest) >> 23) + 1;  // x / scale may be rounded up
  if (last - first >= kOctaves) {
    throw std::logic_error("expected a codebook of fewer than 32 octaves");
  }
  for (uint32_t octave = first; octave <= last; ++octave) {
    const std::vector<Line> lines =
        lines_of(boundaries, float_of(octave << 23), float_of((octave + 1) << 23));
    if (lines.size() > kCodeLines) {
      throw std::logic_error("expected at most three lines in an octave of a codebook");
    }
    for (size_t k = 0; k < kCodeLines; ++k) {
      const Line& line = lines[std::min(k, lines.size() - 1)];
      result.slope[k][octave % kOctaves] = static_cast<float>(line.slope * kCodeLinesOne);
      result.offset[k][octave % kOctaves] = static_cast<float>(line.offset * kCodeLinesOne);
    }
  }
  if (has_peak(boundaries)) {
    const Line peak = peak_of(boundaries, largest);
    result.peak_slope = static_cast<float>(peak.slope * kCodeLinesOne);
    result.peak_offset = static_cast<float>(peak.offset * kCodeLinesOne);
  }
  check_lines(result, boundaries, largest);
  if (signs.is_signed) {
    // A tie may fall to the other side, and the largest rank may be missing.
    const auto rank = [&](float x) {
      return (signs.negative_base - encode(-x)) ^ signs.negative_flip;
    };
    check_lines(result, find_boundaries(rank, largest), boundaries[boundaries.size() - 1]);
  }
  return result;
}

}  // namespace narrowgauge::optim
