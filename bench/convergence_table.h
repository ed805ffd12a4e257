#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace narrowgauge::bench {

using LossCurve = std::map<int64_t, double>;  // step -> validation loss

// The curves of a variant's runs, by seed; of one that is not there empty.
struct VariantCurves {
  std::string variant;
  std::vector<LossCurve> seeds;
  bool is_to_match = true;
};

// The mean over the validations of the last tenth of `steps`; nullopt if there is none.
std::optional<double> final_loss(const LossCurve& curve, int64_t steps);

struct ConvergenceRow {
  std::string variant;
  std::vector<double> losses;  // final, of the seeds that have one
  double mean = 0;
  double spread = 0;                         // standard deviation; 0 of a single seed
  std::optional<double> difference_percent;  // of the mean, to the reference with as many seeds
  bool is_beyond = false;                    // worse than the tolerance, and meant to match
};

// `reference` is the name of a variant, which may be missing.
std::vector<ConvergenceRow> convergence_rows(const std::vector<VariantCurves>& variants,
                                             const std::string& reference, int64_t steps,
                                             double tolerance_percent);

// Markdown.
std::string to_text(const std::vector<ConvergenceRow>& rows, const std::string& reference);
std::string to_json(const std::vector<ConvergenceRow>& rows, const std::string& family,
                    const std::string& reference, int64_t steps);

// At each step that all runs of both have: the mean over seeds of `variant` less that of
// `reference`. Equal seeds have the same batches and initial values.
LossCurve difference(const VariantCurves& variant, const VariantCurves& reference);

}  // namespace narrowgauge::bench
