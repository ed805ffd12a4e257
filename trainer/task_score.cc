#include "trainer/task_score.h"

#include <cmath>
#include <span>
#include <stdexcept>

namespace narrowgauge::trainer {
namespace {

// The first of the largest values of score(i).
template <typename Score>
int64_t argmax(int64_t count, const Score& score) {
  int64_t best = 0;
  for (int64_t i = 1; i < count; ++i) {
    best = score(i) > score(best) ? i : best;
  }
  return best;
}

}  // namespace

Accuracy accuracy_of(int64_t num_right, int64_t num_items) {
  const double n = static_cast<double>(num_items);
  const double share = static_cast<double>(num_right) / n;
  return {share, num_items > 1 ? std::sqrt(share * (1 - share) / (n - 1)) : 0.0};
}

TaskScore score_task(const std::vector<TaskItem>& items,
                     const std::vector<Likelihood>& likelihoods) {
  int64_t num_right = 0;
  int64_t num_right_normalised = 0;
  double log_probability_sum = 0;
  bool has_choices = false;
  size_t at = 0;
  for (const TaskItem& item : items) {
    const auto count = static_cast<int64_t>(item.continuations.size());
    if (at + item.continuations.size() > likelihoods.size()) {
      throw std::logic_error("expected a likelihood of every continuation");
    }
    const auto scores = std::span(likelihoods).subspan(at, item.continuations.size());
    at += item.continuations.size();
    if (count == 1) {
      num_right += scores[0].is_greedy ? 1 : 0;
      log_probability_sum += scores[0].log_probability;
      continue;
    }
    has_choices = true;
    const auto score = [&](int64_t i) { return scores[i].log_probability; };
    num_right += argmax(count, score) == item.gold ? 1 : 0;
    const auto normalised = [&](int64_t i) {
      return score(i) / static_cast<double>(item.lengths[i]);
    };
    num_right_normalised += argmax(count, normalised) == item.gold ? 1 : 0;
  }
  const auto num_items = static_cast<int64_t>(items.size());
  TaskScore result{num_items, accuracy_of(num_right, num_items), {}, {}};
  if (has_choices) {
    result.acc_norm = accuracy_of(num_right_normalised, num_items);
  } else {
    result.perplexity = std::exp(-log_probability_sum / static_cast<double>(num_items));
  }
  return result;
}

}  // namespace narrowgauge::trainer
