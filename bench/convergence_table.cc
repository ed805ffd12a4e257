#include "bench/convergence_table.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

namespace narrowgauge::bench {
namespace {

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double spread_of(const std::vector<double>& values) {
  if (values.size() < 2) {
    return 0;
  }
  const double mean = mean_of(values);
  double sum = 0;
  for (const double value : values) {
    sum += (value - mean) * (value - mean);
  }
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

std::string number(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

// Means over seeds at the steps that all of them have.
LossCurve mean_curve(const VariantCurves& variant) {
  LossCurve means;
  if (variant.seeds.empty()) {
    return means;
  }
  for (const auto& [step, ignored] : variant.seeds.front()) {
    std::vector<double> losses;
    for (const LossCurve& curve : variant.seeds) {
      if (const auto found = curve.find(step); found != curve.end()) {
        losses.push_back(found->second);
      }
    }
    if (losses.size() == variant.seeds.size()) {
      means[step] = mean_of(losses);
    }
  }
  return means;
}

}  // namespace

std::optional<double> final_loss(const LossCurve& curve, int64_t steps) {
  std::vector<double> losses;
  for (const auto& [step, loss] : curve) {
    if (10 * step > 9 * steps) {
      losses.push_back(loss);
    }
  }
  return losses.empty() ? std::nullopt : std::optional(mean_of(losses));
}

std::vector<ConvergenceRow> convergence_rows(const std::vector<VariantCurves>& variants,
                                             const std::string& reference, int64_t steps,
                                             double tolerance_percent) {
  std::vector<ConvergenceRow> rows;
  for (const VariantCurves& variant : variants) {
    ConvergenceRow row;
    row.variant = variant.variant;
    for (const LossCurve& curve : variant.seeds) {
      if (const auto loss = final_loss(curve, steps)) {
        row.losses.push_back(*loss);
      }
    }
    if (!row.losses.empty()) {
      row.mean = mean_of(row.losses);
      row.spread = spread_of(row.losses);
    }
    rows.push_back(row);
  }
  const auto of_reference = std::find_if(rows.begin(), rows.end(),
                                         [&](const auto& row) { return row.variant == reference; });
  if (of_reference == rows.end() || of_reference->losses.empty()) {
    return rows;
  }
  const double reference_mean = of_reference->mean;
  const size_t num_seeds = of_reference->losses.size();
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].variant != reference && rows[i].losses.size() == num_seeds) {
      rows[i].difference_percent = 100 * (rows[i].mean / reference_mean - 1);
      rows[i].is_beyond =
          variants[i].is_to_match && *rows[i].difference_percent > tolerance_percent;
    }
  }
  return rows;
}

std::string to_text(const std::vector<ConvergenceRow>& rows, const std::string& reference) {
  std::string text =
      "| variant | validation loss by seed | mean | spread (standard deviation) | against " +
      reference + " |\n|---|---|---|---|---|\n";
  for (const ConvergenceRow& row : rows) {
    text += "| " + row.variant + " | ";
    if (row.losses.empty()) {
      text += "none | | | |\n";
      continue;
    }
    for (const double loss : row.losses) {
      text += number("%.4f ", loss);
    }
    text += "| " + number("%.4f", row.mean) + " | ";
    if (row.losses.size() > 1) {
      text += number("%.4f", row.spread) + number(" (%.3f %%) ", 100 * row.spread / row.mean);
    }
    text += "| ";
    if (row.difference_percent) {
      text += number("%+.3f %% ", *row.difference_percent);
    }
    text += "|\n";
  }
  return text;
}

std::string to_json(const std::vector<ConvergenceRow>& rows, const std::string& family,
                    const std::string& reference, int64_t steps) {
  using Json = nlohmann::ordered_json;
  Json listed = Json::array();
  for (const ConvergenceRow& row : rows) {
    Json object = {{"variant", row.variant}, {"losses", row.losses}};
    if (!row.losses.empty()) {
      object["mean"] = row.mean;
      object["spread"] = row.losses.size() > 1 ? Json(row.spread) : Json(nullptr);
    }
    object["difference_percent"] =
        row.difference_percent ? Json(*row.difference_percent) : Json(nullptr);
    object["beyond_tolerance"] = row.is_beyond;
    listed.push_back(object);
  }
  return Json{{"family", family}, {"reference", reference}, {"steps", steps}, {"variants", listed}}
             .dump(1) +
         "\n";
}

LossCurve difference(const VariantCurves& variant, const VariantCurves& reference) {
  const LossCurve of_reference = mean_curve(reference);
  LossCurve result;
  for (const auto& [step, loss] : mean_curve(variant)) {
    if (const auto found = of_reference.find(step); found != of_reference.end()) {
      result[step] = loss - found->second;
    }
  }
  return result;
}

}  // namespace narrowgauge::bench
